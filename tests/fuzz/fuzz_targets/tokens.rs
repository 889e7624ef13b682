//! Tokens as other members show them, as bytes and as the text that people pass on.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_authority::{Amounts, Request, Right, Token};

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
});
