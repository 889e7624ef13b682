//! Invites as text, certificates and revocations as bytes.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_overlay::membership::{Certificate, Invite, NetworkConfig, Revocation};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(invite) = std::str::from_utf8(bytes).map_err(drop).and_then(
        |text| Invite::parse(text).map_err(drop)
    ) {
        assert_eq!(
            Invite::parse(&invite.to_text()).map(|again| again.id()).ok(), Some(invite.id())
        );
    }
    let _ = postcard::from_bytes::<Certificate>(bytes);
    let _ = postcard::from_bytes::<Revocation>(bytes);
    let _ = postcard::from_bytes::<NetworkConfig>(bytes);
});
