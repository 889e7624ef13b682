//! The bytes of an envelope.

use super::*;
use crate::golden;

#[test]
fn later_versions_open_an_envelope() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity");
    std::fs::write(&path, [9; 64]).unwrap();
    let to = Identity::load_or_create(&path).unwrap();
    let domain = "p2pvm test";
    golden::check("envelope", |golden| {
        golden.message(
            "envelope",
            &b"share".to_vec(),
            |content| {
                let secret = StaticSecret::from([7; 32]);
                seal_by(secret, to.member_id(), domain, content).unwrap()
            },
            |envelope| to.open_envelope(domain, envelope),
        );
    });
}
