//! What programs of this host wait for, and for how long, whatever its name servers do.

use super::*;
use crate::{
    dns::{Names, Resolver, Sockets, Unavailable, serve},
    entry::{NameEntry, NameKind},
};
use async_trait::async_trait;
use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, TXT},
    },
};
use std::sync::atomic::AtomicUsize;

/// Nobody is in the network.
struct Nobody;

#[async_trait]
impl Names for Nobody {
    async fn forward(&self, _: NameKind, _: &str) -> Result<Option<NameEntry>, Unavailable> {
        Ok(None)
    }

    async fn reverse(&self, _: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        Ok(None)
    }
}

/// How a name server of the host behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    /// Has this last number of an address for everything, after so many milliseconds.
    Answers(u8, u64),
    /// Knows no name, after so many milliseconds.
    Denies(u64),
    /// Fails at once.
    Fails,
    /// Says nothing.
    Sleeps,
    /// Has 60 kB of text for everything.
    Talks,
}

/// A name server, and how often it has been asked.
struct Server(SocketAddr, Arc<AtomicUsize>);

impl Server {
    async fn new(does: Does) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (at, count) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counting = count.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                counting.fetch_add(1, Ordering::Relaxed);
                let (query, socket) = (
                    Message::from_vec(&buffer[..length]).unwrap(),
                    socket.clone(),
                );
                tokio::spawn(async move {
                    for message in reply(&query, does).await {
                        let _ = socket.send_to(&message.to_vec().unwrap(), from).await;
                    }
                });
            }
        });
        Self(at, count)
    }

    fn asked(&self) -> usize {
        self.1.swap(0, Ordering::Relaxed)
    }
}

async fn reply(query: &Message, does: Does) -> Vec<Message> {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    let question = query.queries[0].clone();
    let name = question.name().clone();
    reply.add_queries([question]);
    match does {
        Does::Sleeps => return Vec::new(),
        Does::Fails => reply.metadata.response_code = ResponseCode::ServFail,
        Does::Talks => drop(reply.add_answers((0..250).map(|n| {
            let text = TXT::new(vec![format!("{n:0>230}")]);
            Record::from_rdata(name.clone(), 9, RData::TXT(text))
        }))),
        Does::Denies(millis) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        Does::Answers(last, millis) => {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            reply.add_answers([Record::from_rdata(
                name,
                9,
                RData::A(A(Ipv4Addr::new(198, 18, 0, last))),
            )]);
        }
    }
    let mut forged = reply.clone();
    forged.metadata.id ^= 1;
    let mut other = Message::response(query.metadata.id, OpCode::Query);
    other.add_query(Query::query(
        Name::from_ascii("evil.org.").unwrap(),
        RecordType::A,
    ));
    vec![forged, other, reply]
}

/// Our resolver in front of servers that behave like this.
async fn front(servers: &[SocketAddr]) -> (SocketAddr, Upstream) {
    let resolver = Resolver::new("lab.p2p", "10.77.0.0/16".parse().unwrap()).unwrap();
    let upstream = resolver.upstream().clone();
    upstream.set(servers.to_vec());
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = sockets.address().unwrap();
    tokio::spawn(serve(sockets, resolver, Arc::new(Nobody)));
    (at, upstream)
}

/// Asks as a program does: the answer's code and the last number of its address, and how long it
/// took.
async fn ask(server: SocketAddr, name: &str) -> (ResponseCode, Option<u8>, Duration) {
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let began = Instant::now();
    client
        .send_to(&query.to_vec().unwrap(), server)
        .await
        .unwrap();
    let mut buffer = vec![0; 65535];
    let length = timeout(Duration::from_secs(5), client.recv(&mut buffer))
        .await
        .expect("within a program's patience")
        .unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(
        (answer.metadata.id, &answer.queries),
        (query.metadata.id, &query.queries)
    );
    let last = answer.answers.iter().find_map(|r| {
        if let RData::A(a) = &r.data {
            Some(a.0.octets()[3])
        } else {
            None
        }
    });
    (answer.metadata.response_code, last, began.elapsed())
}

async fn gone() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

const QUICK: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_or_fails_costs_nothing() {
    let (fails, works) = (
        Server::new(Does::Fails).await,
        Server::new(Does::Answers(7, 0)).await,
    );
    let (at, _) = front(&[gone().await, fails.0, works.0]).await;
    let (code, last, took) = ask(at, "debian.org.").await;
    assert_eq!((code, last), (ResponseCode::NoError, Some(7)));
    assert!(took < QUICK, "{took:?}");
    assert_eq!((fails.asked(), works.asked()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_delays_one_question_and_no_other() {
    let (sleeps, works) = (
        Server::new(Does::Sleeps).await,
        Server::new(Does::Answers(7, 0)).await,
    );
    let (at, upstream) = front(&[sleeps.0, works.0]).await;
    let (_, last, took) = ask(at, "a.org.").await;
    assert_eq!(last, Some(7));
    assert!(took < PATIENCE, "{took:?}");
    // By then it has had its time.
    tokio::time::sleep(PATIENCE).await;
    sleeps.asked();
    for n in 0..20 {
        let (_, last, took) = ask(at, &format!("n{n}.org.")).await;
        assert_eq!(last, Some(7));
        assert!(took < QUICK, "{took:?}");
    }
    assert_eq!(sleeps.asked(), 0, "it is left alone for a while");
    upstream.set(vec![works.0, sleeps.0]);
    assert!(
        upstream.dead().is_empty(),
        "another network: all count again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_servers_answer_counts_over_a_sooner_denial() {
    let (slow, denies) = (
        Server::new(Does::Answers(7, 900)).await,
        Server::new(Does::Denies(0)).await,
    );
    let (at, _) = front(&[slow.0, denies.0]).await;
    assert_eq!(ask(at, "intern.example.").await.1, Some(7));
    // The first one's own word counts at once.
    let (denies, works) = (
        Server::new(Does::Denies(0)).await,
        Server::new(Does::Answers(7, 0)).await,
    );
    let (at, _) = front(&[denies.0, works.0]).await;
    let (code, _, took) = ask(at, "nothing.example.").await;
    assert!(
        code == ResponseCode::NXDomain && took < QUICK,
        "{code} {took:?}"
    );
    assert_eq!(works.asked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_fail_a_program_is_told_so_in_time() {
    let (at, upstream) = front(&[gone().await, gone().await]).await;
    let (code, _, took) = ask(at, "debian.org.").await;
    assert!(
        code == ResponseCode::ServFail && took < QUICK,
        "{code} {took:?}"
    );
    assert!(upstream.is_stuck());
    assert_eq!(upstream.answered(), None);
    let works = Server::new(Does::Answers(7, 0)).await;
    upstream.set(vec![works.0]);
    assert_eq!(ask(at, "debian.org.").await.1, Some(7));
    assert!(!upstream.is_stuck() && upstream.answered().is_some());
    let sleeps = Server::new(Does::Sleeps).await;
    let (at, _) = front(&[sleeps.0]).await;
    assert_eq!(
        ask(at, "debian.org.").await.0,
        ResponseCode::ServFail,
        "before it asks again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_is_cut_so_that_the_asker_comes_by_tcp() {
    let talks = Server::new(Does::Talks).await;
    let (at, _) = front(&[talks.0]).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut query = Message::query();
    query.add_query(Query::query(
        Name::from_ascii("long.org.").unwrap(),
        RecordType::TXT,
    ));
    let bytes = query.to_vec().unwrap();
    client.send_to(&bytes, at).await.unwrap();
    let mut buffer = vec![0; 65535];
    let length = client.recv(&mut buffer).await.unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert!(length <= 512 && answer.metadata.truncation && answer.answers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_us_in_turn_makes_no_circle() {
    let (at, upstream) = front(&[]).await;
    let works = Server::new(Does::Answers(7, 0)).await;
    // Passes everything on to us with an id of its own, as dnsmasq does.
    let circle = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (address, passed) = (circle.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = passed.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = circle.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::Relaxed);
            let (mut query, circle) = (buffer[..length].to_vec(), circle.clone());
            tokio::spawn(async move {
                query[1] ^= 0x55;
                let ask = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                ask.send_to(&query, at).await.unwrap();
                let mut answer = [0; 4096];
                let length = ask.recv(&mut answer).await.unwrap();
                answer[1] ^= 0x55;
                circle.send_to(&answer[..length], from).await.unwrap();
            });
        }
    });
    upstream.set(vec![address, works.0]);
    let (_, last, took) = ask(at, "debian.org.").await;
    assert_eq!(last, Some(7));
    assert!(
        took < PATIENCE && passed.load(Ordering::Relaxed) < 4,
        "{took:?}, {passed:?} times around"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machines_other_network_answers_for_its_names_and_addresses() {
    let (other, elsewhere) = (
        Server::new(Does::Answers(9, 0)).await,
        Server::new(Does::Answers(7, 0)).await,
    );
    let (at, upstream) = front(&[elsewhere.0]).await;
    let subnets = vec![(IpAddr::from([10, 88, 0, 0]), 16)];
    upstream.lead(
        vec![elsewhere.0],
        vec![Neighbour {
            server: other.0,
            domain: "home.p2p".into(),
            subnets,
        }],
    );
    for (name, last) in [
        ("a.HOME.p2p.", 9),
        ("1.0.88.10.in-addr.arpa.", 9),
        ("1.0.89.10.in-addr.arpa.", 7),
        ("xhome.p2p.", 7),
    ] {
        assert_eq!(ask(at, name).await.1, Some(last), "{name}");
    }
    assert_eq!(
        ask(at, "nobody.lab.p2p.").await.0,
        ResponseCode::NXDomain,
        "our own name"
    );
    upstream.lead(
        vec![elsewhere.0],
        vec![Neighbour {
            server: gone().await,
            domain: "home.p2p".into(),
            subnets: vec![],
        }],
    );
    let (code, _, took) = ask(at, "a.home.p2p.").await;
    assert!(
        code == ResponseCode::ServFail && took < QUICK,
        "nobody else can know it"
    );
}

#[tokio::test]
async fn other_members_questions_about_other_names_are_refused() {
    let works = Server::new(Does::Answers(7, 0)).await;
    let resolver = Resolver::new("lab.p2p", "10.77.0.0/16".parse().unwrap()).unwrap();
    resolver.upstream().set(vec![works.0]);
    let mut query = Message::query();
    query.add_query(Query::query(
        Name::from_ascii("debian.org.").unwrap(),
        RecordType::A,
    ));
    let answer =
        Message::from_vec(&resolver.answer(&query.to_vec().unwrap(), &Nobody).await).unwrap();
    assert_eq!(
        (answer.metadata.response_code, works.asked()),
        (ResponseCode::Refused, 0)
    );
}
