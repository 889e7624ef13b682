//! What a member gets while others open calls and streams and go on with none of them. Time is
//! virtual and the streams are in memory.

use super::*;
use requests::{KIND_CALL, KIND_STREAM};
use serve::Server;
use tokio::{io::DuplexStream, time};
use tokio_util::compat::TokioAsyncReadCompatExt;

/// Another service that is served while others are flooded.
struct Vital;
#[async_trait]
impl Serve for Vital {
    async fn serve(&self, _: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(body)
    }

    fn is_vital(&self) -> bool {
        true
    }
}

/// Answers with as much as an answer may have.
struct Much;
#[async_trait]
impl Serve for Much {
    async fn serve(&self, _: MemberId, _: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(vec![7; 1 << 20])
    }
}

/// A node that serves, without a swarm.
struct Served {
    world: World,
    shared: Arc<Shared>,
    server: Arc<Server>,
    _commands: mpsc::Receiver<Command>,
}

impl Served {
    fn new() -> Self {
        let world = World::new(1);
        let identity = Identity::generate();
        let certificate = world.certify(&identity, "first", true);
        let config = world.config(identity, certificate, Vec::new());
        let me = config.identity.member_id();
        let door = Arc::new(door_of(&config, None));
        let book = Book::load(&world.dir.path().join(PEER_CACHE), &config.trust, me, 64);
        let (commands, _commands) = mpsc::channel(1);
        let shared = Shared::new(me, door, book, commands, 64, config.underlay);
        let shared = Arc::new(shared);
        shared.set_handler("reverse", Arc::new(Reverse));
        shared.set_handler("vital", Arc::new(Vital));
        shared.set_handler("much", Arc::new(Much));
        Self {
            world,
            server: Server::new(shared.clone()),
            shared,
            _commands,
        }
    }

    fn member(&self, name: &str) -> MemberId {
        let identity = Identity::generate();
        let certificate = self.world.certify(&identity, name, false);
        let mut known = self.shared.certificates.write().unwrap();
        known.insert(identity.member_id(), certificate);
        identity.member_id()
    }

    /// A stream of a member's that begins with `first`; it holds few bytes that nobody reads.
    async fn open(&self, member: MemberId, first: &[u8]) -> DuplexStream {
        let (mut here, there) = tokio::io::duplex(4096);
        self.server.begin(member, there.compat(), Arc::new(()));
        here.write_all(first).await.unwrap();
        here
    }

    /// A call of whose body three bytes of a megabyte come.
    async fn stalled(&self, member: MemberId) -> DuplexStream {
        let body = [&(1u32 << 20).to_be_bytes()[..], &[1, 2, 3]].concat();
        self.open(member, &opening(KIND_CALL, "reverse", &body))
            .await
    }

    /// What a member's call of three bytes brings, and after how long.
    async fn call(&self, member: MemberId, service: &str) -> (Vec<u8>, Duration) {
        let began = time::Instant::now();
        let body = opening(KIND_CALL, service, &[0, 0, 0, 3, 1, 2, 3]);
        let mut stream = self.open(member, &body).await;
        let mut answer = Vec::new();
        time::timeout(LONG * 100, stream.read_to_end(&mut answer))
            .await
            .expect("it ends")
            .unwrap();
        (answer, began.elapsed())
    }
}

fn opening(kind: u8, service: &str, rest: &[u8]) -> Vec<u8> {
    [&[kind, service.len() as u8], service.as_bytes(), rest].concat()
}

const REVERSED: [u8; 8] = [0, 0, 0, 0, 3, 3, 2, 1];
const SAME: [u8; 8] = [0, 0, 0, 0, 3, 1, 2, 3];

#[tokio::test(start_paused = true)]
async fn a_member_with_hundreds_of_stalled_calls_delays_no_other_member() {
    let served = Served::new();
    let (b, c) = (served.member("b"), served.member("c"));
    let mut stalled = Vec::new();
    for _ in 0..600 {
        let (here, there) = tokio::io::duplex(4096);
        served.server.begin(b, there.compat(), Arc::new(()));
        stalled.push(here);
    }
    for stream in &mut stalled {
        let body = [&(1u32 << 20).to_be_bytes()[..], &[1, 2, 3]].concat();
        // Those beyond what one member may open were dropped.
        let _ = stream
            .write_all(&opening(KIND_CALL, "reverse", &body))
            .await;
    }
    time::sleep(Duration::from_millis(1)).await;
    let (answer, took) = served.call(c, "reverse").await;
    assert_eq!(answer, REVERSED);
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn votes_are_answered_while_many_members_stall_all_other_calls() {
    let served = Served::new();
    let mut stalled = Vec::new();
    for i in 0..12 {
        let member = served.member(&format!("m{i}"));
        for _ in 0..64 {
            stalled.push(served.stalled(member).await);
        }
    }
    time::sleep(Duration::from_millis(1)).await;
    let c = served.member("c");
    for service in ["vital", "~probe"] {
        let (answer, took) = served.call(c, service).await;
        assert_eq!(answer[0], 0, "{service}: {answer:?}");
        assert!(took < Duration::from_secs(1), "{service}: {took:?}");
    }
    assert_eq!(served.call(c, "vital").await.0, SAME);
    // The others have their turn once the time of the stalled bodies is over.
    time::sleep(Duration::from_secs(100)).await;
    assert_eq!(served.call(c, "reverse").await.0, REVERSED);
}

#[tokio::test(start_paused = true)]
async fn a_stalling_body_and_an_unread_answer_end_in_time() {
    let served = Served::new();
    let b = served.member("b");
    let mut body = served.stalled(b).await;
    let began = time::Instant::now();
    assert_eq!(body.read(&mut [0; 9]).await.unwrap(), 0, "no answer came");
    let took = began.elapsed();
    assert!(
        took > Duration::from_secs(60),
        "a slow path has time: {took:?}"
    );
    assert!(took < Duration::from_secs(100), "{took:?}");

    let call = opening(KIND_CALL, "much", &[0, 0, 0, 0]);
    let mut answer = served.open(b, &call).await;
    // What the stream itself holds is left when the time is over.
    time::sleep(Duration::from_secs(100)).await;
    let mut left = Vec::new();
    let read = time::timeout(Duration::from_secs(1), answer.read_to_end(&mut left)).await;
    assert!(read.is_ok() && left.len() <= 4096, "{} bytes", left.len());
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_refused_where_its_acceptor_takes_none() {
    let served = Served::new();
    let (b, c) = (served.member("b"), served.member("c"));
    let mut taken = served.shared.set_acceptor("bulk");
    let _unread = served.shared.set_acceptor("other");
    let mut kept = Vec::new();
    let status = async |stream: &mut DuplexStream| stream.read_u8().await.unwrap();
    for _ in 0..64 {
        let mut stream = served.open(b, &opening(KIND_STREAM, "other", &[])).await;
        assert_eq!(status(&mut stream).await, wire::Status::Ok as u8);
        kept.push(stream);
    }
    let mut stream = served.open(c, &opening(KIND_STREAM, "other", &[])).await;
    let answered = time::timeout(Duration::from_secs(10), stream.read_u8()).await;
    assert_eq!(answered.unwrap().unwrap(), wire::Status::Refused as u8);

    // One member has so many streams at most; the others have theirs.
    let mut accepted = Vec::new();
    let mut refused = 0;
    for _ in 0..300 {
        let mut stream = served.open(b, &opening(KIND_STREAM, "bulk", &[])).await;
        match status(&mut stream).await {
            0 => accepted.push(taken.recv().await.unwrap()),
            _ => refused += 1,
        }
        kept.push(stream);
    }
    assert_eq!((accepted.len(), refused), (256 - 64, 108));
    let mut stream = served.open(c, &opening(KIND_STREAM, "bulk", &[])).await;
    assert_eq!(status(&mut stream).await, wire::Status::Ok as u8);
    // A stream that ends makes room.
    accepted.clear();
    let mut stream = served.open(b, &opening(KIND_STREAM, "bulk", &[])).await;
    assert_eq!(status(&mut stream).await, wire::Status::Ok as u8);
}
