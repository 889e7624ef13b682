//! A member with a valid certificate, a delegate and a guest try what they have no right to, on a
//! network of real daemons: each attempt ends as docs/security.md says, the others are still
//! served, and no daemon panics, restarts or falls ill. The attempts are rows; a run names those
//! that failed.

mod common;
mod rogue;

use rogue::{Attempt, Stage, chunks, flood, guest, membership, records, vms, votes};

#[test]
fn a_rogue_member_gains_nothing_from_a_live_network() {
    let stage = Stage::raise("rogue");
    let close: Attempt = ("the network closed by its founder", vms::close);
    let attempts: Vec<Attempt> = [
        vms::OPEN,
        records::ATTEMPTS,
        votes::ATTEMPTS,
        chunks::ATTEMPTS,
        membership::ATTEMPTS,
        flood::JUNK,
        flood::HOGS,
        flood::FLOODS,
        &[close],
        vms::CLOSED,
        membership::LAST,
    ]
    .concat();
    assert!(attempts.len() >= 100);
    stage.play(&attempts);
    stage.down();
}

#[test]
fn a_rogue_guest_gains_nothing_from_its_host_or_the_network() {
    let stage = Stage::raise("rogue-guest");
    stage.play(guest::ATTEMPTS);
    stage.down();
}
