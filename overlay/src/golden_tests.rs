//! Golden bytes of what has no module of its own: STUN between members.

use crate::{golden, stun};
use std::net::SocketAddr;

#[test]
fn members_of_the_previous_version_read_stun_messages() {
    golden::check("stun", |golden| {
        let id = [7; 12];
        let request = stun::request_of(id).expect("a request");
        golden.bytes("request", &request);
        let seen = [
            ("answer.v4", "198.51.100.7:40001"),
            ("answer.v6", "[2001:db8::7]:9"),
        ];
        for (name, from) in seen {
            let from: SocketAddr = from.parse().expect("an address");
            golden.message(
                name,
                &(id, from),
                |(_, from)| stun::answer(&request, *from).expect("an answer"),
                stun::mapped,
            );
            golden.message(
                &format!("{name}.unasked"),
                &(id, from),
                |(id, from)| stun::unasked(*id, *from).expect("an answer"),
                stun::mapped,
            );
        }
    });
}
