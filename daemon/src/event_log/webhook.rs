//! Posts events of the kinds that `node.toml` names to a URL, as JSON, one request an event, oldest
//! first. A receiver that does not answer is tried again with growing pauses, while further events
//! wait in a bounded queue; when that is full the oldest are dropped. Nothing waits for it.

use super::{EventLog, Settings, query::view};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use p2pvm_authority::Event;
use p2pvm_host::{Repeated, chain};
use p2pvm_overlay::control::names;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{net::SocketAddr, str::FromStr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::broadcast::error::RecvError,
};
use tokio_rustls::TlsConnector;

/// How long the receiver may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// How long before the first retry; each further one comes after twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long before a retry at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How much of an answer is read, bytes.
const MAX_ANSWER_BYTES: usize = 4 << 10;
/// Where distributions keep the certificates of authorities.
const AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A receiver's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    authority: String,
    /// The path with the query.
    path: String,
    tls: bool,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The URL may hold a secret, so the message does not repeat it.
        let wrong = |why: &str| {
            format!(
                "[events] webhook {why}: give the receiver's address, such as \
                    https://alerts.example/hook"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("does not begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("has a user or password, which is not supported"));
        }
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: path.to_owned(),
            tls,
        })
    }
}

/// What came of one request.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    /// For good: another try would not help.
    Refused(String),
    Later(String),
}

/// Posts the events of the host of that name until the log is gone; returns at once if no receiver
/// is set.
pub(crate) async fn run(log: Arc<EventLog>, host: String, settings: Settings) {
    let Some(endpoint) = settings.endpoint() else {
        return;
    };
    let mut news = log.written.subscribe();
    let mut trouble = Repeated::new();
    loop {
        match news.recv().await {
            Ok(event) if settings.webhook_kinds.contains(&event.kind) => {
                deliver(&endpoint, &event, &host, &mut trouble).await;
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(
                    missed,
                    "the webhook's receiver is too slow: events are dropped"
                );
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// Posts one event until it is taken or refused.
async fn deliver(endpoint: &Endpoint, event: &Event, host: &str, trouble: &mut Repeated) {
    let body = serde_json::to_vec(&view(event, host)).expect("an event is plain JSON");
    let mut pause = FIRST_PAUSE;
    loop {
        let posted = tokio::time::timeout(LIMIT, post(endpoint, body.clone())).await;
        let fate = match posted {
            Ok(fate) => fate.unwrap_or_else(Fate::Later),
            Err(_) => Fate::Later(format!("no answer within {} s", LIMIT.as_secs())),
        };
        let (why, is_over) = match fate {
            Fate::Taken => {
                if trouble.over().is_some() {
                    tracing::info!("the webhook's receiver takes events again");
                }
                return;
            }
            Fate::Refused(why) => (why, true),
            Fate::Later(why) => (why, false),
        };
        if let Some(times) = trouble.again("webhook") {
            tracing::warn!(times, why, "the webhook's receiver did not take an event");
        }
        if is_over {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn post(endpoint: &Endpoint, body: Vec<u8>) -> Result<Fate, String> {
    let found = names::addresses(&endpoint.host).await?;
    let addresses: Vec<_> = found
        .into_iter()
        .map(|address| SocketAddr::new(address, endpoint.port))
        .collect();
    let stream = TcpStream::connect(addresses.as_slice())
        .await
        .map_err(|e| chain(&e))?;
    if !endpoint.tls {
        return exchange(stream, endpoint, body).await;
    }
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| chain(&e))?;
    let connector = TlsConnector::from(Arc::new(tls()?));
    let stream = connector.connect(name, stream).await;
    exchange(stream.map_err(|e| chain(&e))?, endpoint, body).await
}

/// TLS with the authorities that this machine trusts.
fn tls() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for file in AUTHORITIES {
        if let Ok(found) = CertificateDer::pem_file_iter(file) {
            roots.add_parsable_certificates(found.flatten());
        }
        if !roots.is_empty() {
            break;
        }
    }
    if roots.is_empty() {
        return Err(
            "this machine has no certificates of authorities: install the package \
            ca-certificates"
                .to_owned(),
        );
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| chain(&e))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    endpoint: &Endpoint,
    body: Vec<u8>,
) -> Result<Fate, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| chain(&e))?;
    // The task ends with `sender`, which is dropped when this function returns.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %chain(&error), "the connection to the webhook's receiver \
                ended");
        }
    });
    let request = Request::post(endpoint.path.as_str())
        .header(HOST, &endpoint.authority)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("p2pvm/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| chain(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| chain(&e))?;
    let status = answer.status();
    // Read, so that the receiver sees a whole exchange.
    let _ = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
        .collect()
        .await;
    Ok(fate(status))
}

/// The meaning of an answer: what is the request's fault is not repeated (RFC 9110 §15).
fn fate(status: StatusCode) -> Fate {
    match status {
        _ if status.is_success() => Fate::Taken,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Fate::Later(format!("HTTP {status}"))
        }
        _ if status.is_server_error() => Fate::Later(format!("HTTP {status}")),
        _ => Fate::Refused(format!("HTTP {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_receiver_and_its_secret_is_not_repeated() {
        let one: Endpoint = "https://alerts.example/hook?key=1".parse().unwrap();
        assert!(one.tls && one.port == 443 && one.path == "/hook?key=1");
        let one: Endpoint = "http://[::1]:9000".parse().unwrap();
        assert_eq!(
            (one.host.as_str(), one.port, one.path.as_str()),
            ("::1", 9000, "/")
        );
        for text in [
            "alerts.example",
            "ftp://x/secret",
            "https://me:secret@x/",
            "http://",
        ] {
            let said = text.parse::<Endpoint>().unwrap_err();
            assert!(
                said.contains("https://") && !said.contains("secret"),
                "{said}"
            );
        }
    }

    #[test]
    fn only_what_may_succeed_later_is_tried_again() {
        assert_eq!(fate(StatusCode::NO_CONTENT), Fate::Taken);
        for status in [429, 408, 500, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(matches!(fate(status), Fate::Later(_)), "{status}");
        }
        for status in [301, 400, 404] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(matches!(fate(status), Fate::Refused(_)), "{status}");
        }
    }
}
