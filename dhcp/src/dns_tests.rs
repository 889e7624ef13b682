//! What a stub resolver hears.

use super::*;
use crate::entry::Subject;
use p2pvm_dht::RecordError;
use p2pvm_overlay::{MemberId, VmId};
use proptest::prelude::*;
use std::{net::Ipv4Addr, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
const WEB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
const WEB_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 9);

struct Table;

#[async_trait]
impl Names for Table {
    async fn forward(&self, kind: NameKind, label: &str) -> Result<Option<NameEntry>, Unavailable> {
        match (kind, label) {
            (NameKind::Host, "alpha") => Ok(Some(NameEntry {
                subject: Subject::Member(MemberId([1; 32])),
                v4: HOST,
                v6: None,
            })),
            (NameKind::Vm, "web") => Ok(Some(NameEntry {
                subject: Subject::Vm(VmId([2; 32])),
                v4: WEB,
                v6: Some(WEB_V6),
            })),
            (_, "cut") => Err(Unavailable(Error::Records(RecordError::Disagreement))),
            _ => Ok(None),
        }
    }

    async fn reverse(&self, ip: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        let web = ip == IpAddr::V4(WEB) || ip == IpAddr::V6(WEB_V6);
        Ok(web.then(|| (NameKind::Vm, "web".into())))
    }
}

fn resolver() -> Resolver {
    Resolver::new("lab.p2p", "10.77.0.0/16".parse().unwrap())
        .unwrap()
        .with_v6("fd77::".parse().unwrap(), 48)
}

async fn ask(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let reply =
        Message::from_vec(&resolver().answer(&query.to_vec().unwrap(), &Table).await).unwrap();
    assert_eq!(
        (reply.metadata.id, &reply.queries),
        (query.metadata.id, &query.queries)
    );
    reply
}

fn data(reply: &Message) -> Vec<RData> {
    reply.answers.iter().map(|r| r.data.clone()).collect()
}

#[tokio::test]
async fn hosts_and_vms_have_addresses_whatever_the_letter_case() {
    let reply = ask("Alpha.LAB.p2p.", RecordType::A).await;
    assert_eq!(
        (data(&reply), reply.metadata.authoritative),
        (vec![RData::A(A(HOST))], true)
    );
    assert_eq!(
        data(&ask("web.vm.lab.p2p.", RecordType::A).await),
        [RData::A(A(WEB))]
    );
    assert_eq!(
        data(&ask("web.vm.lab.p2p.", RecordType::AAAA).await),
        [RData::AAAA(AAAA(WEB_V6))]
    );
    assert_eq!(
        ask("web.vm.lab.p2p.", RecordType::ANY).await.answers.len(),
        2
    );
}

#[tokio::test]
async fn no_such_type_and_no_such_name_differ_and_expire_soon() {
    for (name, kind, code) in [
        ("alpha.lab.p2p.", RecordType::AAAA, ResponseCode::NoError),
        ("vm.lab.p2p.", RecordType::A, ResponseCode::NoError),
        ("lab.p2p.", RecordType::A, ResponseCode::NoError),
        ("web.lab.p2p.", RecordType::A, ResponseCode::NXDomain),
        ("x.y.vm.lab.p2p.", RecordType::A, ResponseCode::NXDomain),
        ("a_b.vm.lab.p2p.", RecordType::A, ResponseCode::NXDomain),
    ] {
        let reply = ask(name, kind).await;
        assert_eq!(
            (reply.metadata.response_code, reply.answers.len()),
            (code, 0),
            "{name}"
        );
        assert!(matches!(
            &reply.authorities[..],
            [soa] if soa.ttl == NEGATIVE_TTL_SECONDS && soa.record_type() == RecordType::SOA
        ));
    }
    assert_eq!(ask("lab.p2p.", RecordType::SOA).await.answers.len(), 1);
}

#[tokio::test]
async fn other_domains_are_refused_and_a_lost_quorum_is_a_server_failure() {
    for (name, kind, code) in [
        ("debian.org.", RecordType::A, ResponseCode::Refused),
        ("notlab.p2p.", RecordType::A, ResponseCode::Refused),
        (
            "4.4.8.8.in-addr.arpa.",
            RecordType::PTR,
            ResponseCode::Refused,
        ),
        ("cut.lab.p2p.", RecordType::A, ResponseCode::ServFail),
    ] {
        let reply = ask(name, kind).await;
        assert_eq!(reply.metadata.response_code, code, "{name}");
    }
}

#[tokio::test]
async fn addresses_have_names() {
    let expected = RData::PTR(PTR(Name::from_ascii("web.vm.lab.p2p.").unwrap()));
    assert_eq!(
        data(&ask("9.0.77.10.in-addr.arpa.", RecordType::PTR).await),
        std::slice::from_ref(&expected)
    );
    let v6 = Name::from(IpAddr::V6(WEB_V6)).to_ascii();
    assert_eq!(data(&ask(&v6, RecordType::PTR).await), [expected]);
    assert_eq!(
        ask("7.0.77.10.in-addr.arpa.", RecordType::PTR)
            .await
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn malformed_and_foreign_messages_are_turned_away() {
    let answer = |bytes: Vec<u8>| async move { resolver().answer(&bytes, &Table).await };
    let mut broken = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63];
    let reply = Message::from_vec(&answer(broken.clone()).await).unwrap();
    assert_eq!(
        (reply.metadata.id, reply.metadata.response_code),
        (0x1234, ResponseCode::FormErr)
    );
    broken[2] |= 0x80;
    assert!(
        answer(broken).await.is_empty(),
        "a response is never answered"
    );
    assert!(answer(vec![1, 2, 3]).await.is_empty());
    let mut update = Message::new(5, hickory_proto::op::MessageType::Query, OpCode::Update);
    update.add_query(Query::query(
        Name::from_ascii("lab.p2p.").unwrap(),
        RecordType::SOA,
    ));
    let reply = Message::from_vec(&answer(update.to_vec().unwrap()).await).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NotImp);
}

#[tokio::test]
async fn edns_is_answered_in_kind() {
    let mut query = Message::query();
    query
        .add_query(Query::query(
            Name::from_ascii("alpha.lab.p2p.").unwrap(),
            RecordType::A,
        ))
        .set_edns(Edns::new());
    let reply =
        Message::from_vec(&resolver().answer(&query.to_vec().unwrap(), &Table).await).unwrap();
    assert!(reply.edns.is_some() && reply.answers.len() == 1);
}

#[tokio::test]
async fn the_served_socket_answers_many_clients() {
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = sockets.address().unwrap();
    let task = tokio::spawn(serve(sockets, resolver(), Arc::new(Table)));
    for _ in 0..20 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut query = Message::query();
        query.add_query(Query::query(
            Name::from_ascii("web.vm.lab.p2p.").unwrap(),
            RecordType::A,
        ));
        client
            .send_to(&query.to_vec().unwrap(), server)
            .await
            .unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).await.unwrap();
        assert_eq!(
            data(&Message::from_vec(&buffer[..length]).unwrap()),
            [RData::A(A(WEB))]
        );
    }
    task.abort();
}

#[tokio::test]
async fn a_program_that_uses_nothing_but_tcp_is_answered_on_one_connection() {
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = sockets.address().unwrap();
    let task = tokio::spawn(serve(sockets, resolver(), Arc::new(Table)));
    let mut stream = tokio::net::TcpStream::connect(server).await.unwrap();
    let mut both = Vec::new();
    for kind in [RecordType::A, RecordType::AAAA] {
        let mut query = Message::query();
        query.add_query(Query::query(
            Name::from_ascii("web.vm.lab.p2p.").unwrap(),
            kind,
        ));
        let query = query.to_vec().unwrap();
        both.extend([&(query.len() as u16).to_be_bytes()[..], &query].concat());
    }
    // Both at once, as glibc does.
    stream.write_all(&both).await.unwrap();
    for expected in [RData::A(A(WEB)), RData::AAAA(AAAA(WEB_V6))] {
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(data(&Message::from_vec(&answer).unwrap()), [expected]);
    }
    task.abort();
}

#[tokio::test]
async fn the_letters_of_a_question_come_back_as_they_were() {
    let mut query = Message::query();
    query.add_query(Query::query(
        Name::from_ascii("aLpHa.lAB.p2P.").unwrap(),
        RecordType::A,
    ));
    let bytes = query.to_vec().unwrap();
    let reply = resolver().answer(&bytes, &Table).await;
    assert_eq!(reply[12..bytes.len()], bytes[12..]);
}

#[tokio::test]
async fn parts_of_the_way_to_our_addresses_exist_and_have_no_records() {
    for name in [
        "77.10.in-addr.arpa.",
        "0.77.10.in-addr.arpa.",
        "7.7.d.f.ip6.arpa.",
    ] {
        let reply = ask(name, RecordType::NS).await;
        let expected = if name.contains("ip6") {
            ResponseCode::Refused
        } else {
            ResponseCode::NoError
        };
        assert_eq!(
            (reply.metadata.response_code, reply.answers.len()),
            (expected, 0),
            "{name}"
        );
    }
}

proptest! {
    #[test]
    fn no_query_makes_the_resolver_panic(bytes: Vec<u8>, id: u16) {
        let mut query = id.to_be_bytes().to_vec();
        query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        query.extend(bytes);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reply = runtime.block_on(resolver().answer(&query, &Table));
        prop_assert!(Message::from_vec(&reply).is_ok());
    }
}
