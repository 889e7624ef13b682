//! Ring packets: the header, the messages within, and a ring that receives what parses.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::{
    MemberId,
    ring::{Input, Ring, RingOptions, ask, message::Message, trace, wire},
};
use std::time::Instant;

fuzz_target!(|bytes: &[u8]| {
    let _ = Message::decode(bytes);
    let _ = trace::parse_report(bytes);
    let _ = ask::parse(bytes);
    if let Ok(packet) = wire::parse(bytes) {
        assert_eq!(
            wire::parse(&packet.to_bytes()).map(|again| again.to_bytes()).ok(),
            Some(packet.to_bytes())
        );
        let now = Instant::now();
        let mut ring = Ring::new(MemberId([1; 32]), RingOptions::default(), 7);
        let neighbour = MemberId([2; 32]);
        ring.handle(now, Input::Linked { member: neighbour, rtt: None });
        ring.handle(now, Input::Received { from: neighbour, packet });
        while ring.poll().is_some() {}
    }
});
