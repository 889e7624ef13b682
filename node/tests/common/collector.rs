//! A collector of traces for tests: a real HTTP server that reads OTLP as a collector does, and
//! answers as it is told.

#![allow(dead_code, reason = "each test binary uses its own part")]

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A span with the resource that sent it.
#[derive(Clone, Debug)]
pub struct Taken {
    pub resource: BTreeMap<String, String>,
    pub attributes: BTreeMap<String, String>,
    pub span: Span,
}

#[derive(Default)]
struct Book {
    taken: Mutex<Vec<Taken>>,
    /// The headers of the last request, in small letters.
    headers: Mutex<BTreeMap<String, String>>,
    requests: AtomicU64,
    status: AtomicU16,
    rejects: AtomicU64,
    stop: AtomicBool,
}

/// The running collector. Dropping it closes its port.
pub struct Collector {
    book: Arc<Book>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Takes spans at `listener` from now on.
    pub fn at(listener: TcpListener) -> Self {
        let book = Arc::new(Book::default());
        book.status.store(200, Ordering::SeqCst);
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket option");
        let theirs = book.clone();
        let thread = std::thread::spawn(move || {
            while !theirs.stop.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        // A client that breaks off is its own matter.
                        let _ = serve(&theirs, stream);
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        });
        Self {
            book,
            address,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All spans so far.
    pub fn taken(&self) -> Vec<Taken> {
        self.book.taken.lock().unwrap().clone()
    }

    /// The one span of that name; `None` until it is here.
    pub fn named(&self, name: &str) -> Option<Taken> {
        let mut found: Vec<_> = self
            .taken()
            .into_iter()
            .filter(|t| t.span.name == name)
            .collect();
        assert!(found.len() < 2, "{name} came twice");
        found.pop()
    }

    /// A header of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        self.book.headers.lock().unwrap().get(name).cloned()
    }

    /// How many requests came.
    pub fn requests(&self) -> u64 {
        self.book.requests.load(Ordering::SeqCst)
    }

    /// Answers with this status from now on, and says of each batch that so many spans were
    /// rejected.
    pub fn answers(&self, status: u16, rejects: u64) {
        self.book.status.store(status, Ordering::SeqCst);
        self.book.rejects.store(rejects, Ordering::SeqCst);
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.book.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the collector does not panic");
        }
    }
}

fn serve(book: &Book, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = vec![
        0;
        headers
            .get("content-length")
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    ];
    reader.read_exact(&mut body)?;
    let mut status = book.status.load(Ordering::SeqCst);
    if line.trim_end() != "POST /v1/traces HTTP/1.1"
        || headers.get("content-type").map(String::as_str) != Some("application/x-protobuf")
    {
        status = 404;
    }
    let mut answer = Vec::new();
    if status == 200 {
        let request = ExportTraceServiceRequest::decode(&*body).expect("what a collector can read");
        let rejected = book.rejects.load(Ordering::SeqCst) as i64;
        book.taken
            .lock()
            .unwrap()
            .extend(unpacked(request).skip(rejected as usize));
        let partial = ExportTracePartialSuccess {
            rejected_spans: rejected,
            error_message: "too many".to_owned(),
        };
        answer = ExportTraceServiceResponse {
            partial_success: (rejected > 0).then_some(partial),
        }
        .encode_to_vec();
    }
    *book.headers.lock().unwrap() = headers;
    book.requests.fetch_add(1, Ordering::SeqCst);
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status} As told\r\ncontent-length: {}\r\n\r\n",
        answer.len()
    )?;
    stream.write_all(&answer)
}

fn unpacked(request: ExportTraceServiceRequest) -> impl Iterator<Item = Taken> {
    request.resource_spans.into_iter().flat_map(|of| {
        let resource = plain(&of.resource.unwrap_or_default().attributes);
        let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.map(move |span| Taken {
            resource: resource.clone(),
            attributes: plain(&span.attributes),
            span,
        })
    })
}

/// Attributes as texts.
pub fn plain(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |kv: &KeyValue| match kv.value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|kv| (kv.key.clone(), text(kv)))
        .collect()
}
