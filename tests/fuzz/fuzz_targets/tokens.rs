//! Tokens as other members show them, as bytes and as the text that people pass on, their
//! revocations, and users' proofs.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_authority::{Amounts, Proof, Request, Revocation, Revocations, Right, Token};

fuzz_target!(|bytes: &[u8]| {
    let read = [
        Token::from_bytes(bytes).ok(),
        std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()),
    ];
    for token in read.into_iter().flatten() {
        assert_eq!(Token::from_bytes(&token.to_bytes()), Ok(token.clone()));
        let request = Request {
            asker: token.audience(),
            resource: token.resource(),
            right: Right::See,
            amounts: Amounts::default(),
            now: token.until().saturating_sub(1),
        };
        let _ = token.check(&[token.links()[0].issuer], &request, |_| false);
    }
    if let Some((resource, revocation)) = Revocation::from_message(bytes) {
        let message = revocation.to_message(resource);
        assert_eq!(Revocation::from_message(&message), Some((resource, revocation)));
        let now = revocation.until.saturating_sub(1);
        let kept = Revocations::of_told(resource, [revocation; 3], now);
        assert!(kept.iter().count() <= 1);
    }
    let text = std::str::from_utf8(bytes).ok();
    if let Some(proof) = text.and_then(|text| text.parse::<Proof>().ok()) {
        assert_eq!(proof.to_string().parse(), Ok(proof));
    }
    if let Some(revocation) = Revocation::from_field(bytes) {
        assert_eq!(Revocation::from_field(&revocation.to_field()), Some(revocation));
    }
});
