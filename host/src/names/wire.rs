//! One question and its answer: as much of DNS (RFC 1035) as it takes to check a name server.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

/// The type of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// An IPv4 address.
    A = 1,
    /// Name servers.
    Ns = 2,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0: it exists; 2: the server failed; 3: no such name; 5: refused (RFC 1035 §4.1.1).
    pub code: u8,
    /// The IPv4 addresses in it.
    pub addresses: Vec<Ipv4Addr>,
}

fn query(id: u16, name: &str, kind: Kind) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(label.len().min(63) as u8);
        query.extend(label.bytes().take(63));
    }
    query.push(0);
    query.extend((kind as u16).to_be_bytes());
    query.extend([0, 1]);
    query
}

/// The end of the name that begins at `at`.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

fn read(message: &[u8], asked: &[u8]) -> Option<Answer> {
    let is_answer = message.get(..2)? == &asked[..2] && message.get(2)? & 0x80 != 0;
    let same = message
        .get(12..asked.len())
        .is_some_and(|question| question.eq_ignore_ascii_case(&asked[12..]));
    let code = message.get(3)? & 15;
    // A server that cannot parse a question may omit it.
    if !is_answer || !(same || code != 0) {
        return None;
    }
    let mut answer = Answer {
        code,
        addresses: Vec::new(),
    };
    let (mut at, count) = (
        asked.len(),
        u16::from_be_bytes([*message.get(6)?, *message.get(7)?]),
    );
    for _ in 0..if same { count } else { 0 } {
        let Some(record) =
            skip_name(message, at).and_then(|at| Some((at + 10, message.get(at..at + 10)?)))
        else {
            break;
        };
        let (data, head) = record;
        let length = usize::from(u16::from_be_bytes([head[8], head[9]]));
        if head[..4] == [0, 1, 0, 1]
            && let Some(&[a, b, c, d]) = message.get(data..data + length)
        {
            answer.addresses.push(Ipv4Addr::new(a, b, c, d));
        }
        at = data + length;
    }
    Some(answer)
}

/// Asks one server, and once more after half of the time.
///
/// # Errors
/// The kernel's error: `ConnectionRefused` if nothing listens; `TimedOut`.
pub fn ask(server: SocketAddr, name: &str, kind: Kind, limit: Duration) -> io::Result<Answer> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    // Only this machine's own programs could guess it, and they gain nothing.
    let id = socket.local_addr()?.port();
    let asked = query(id, name, kind);
    let began = Instant::now();
    let mut buffer = [0; 4096];
    for end in [limit / 2, limit] {
        socket.send(&asked)?;
        while let Some(left) = end
            .checked_sub(began.elapsed())
            .filter(|left| !left.is_zero())
        {
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(answer) = read(&buffer[..length], &asked) {
                        return Ok(answer);
                    }
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer_to(asked: &[u8], code: u8, address: [u8; 4]) -> Vec<u8> {
        let mut answer = asked.to_vec();
        (answer[2], answer[3], answer[7]) = (0x81, 0x80 | code, 1);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
        answer
    }

    #[test]
    fn a_server_is_asked_and_only_its_answer_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            let mut other = answer_to(&buffer[..length], 0, [9, 9, 9, 9]);
            other[0] ^= 1;
            server.send_to(&other, from).unwrap();
            server
                .send_to(&answer_to(&buffer[..length], 0, [10, 9, 0, 1]), from)
                .unwrap();
            server
        });
        let answer = ask(at, "a.lab.p2p", Kind::A, Duration::from_secs(5)).unwrap();
        assert_eq!(
            answer,
            Answer {
                code: 0,
                addresses: vec![Ipv4Addr::new(10, 9, 0, 1)]
            }
        );
        drop(serving.join().unwrap());
        let gone = ask(at, "a.lab.p2p", Kind::A, Duration::from_secs(5)).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>) {
            let asked = query(7, "a.lab.p2p", Kind::A);
            let _ = read(&bytes, &asked);
            let mut begun = answer_to(&asked, 0, [1, 2, 3, 4]);
            begun.truncate(begun.len() - 4);
            begun.extend(bytes);
            let _ = read(&begun, &asked);
        }
    }
}
