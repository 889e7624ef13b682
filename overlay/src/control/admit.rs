//! A request to join that its joiner has signed, so that no member on its way to an issuer can put
//! another name or link key into it. Members of the first release neither send nor read it: a
//! joiner knocks by [`MEMBER_PROTOCOL_SIGNED`](super::wire::MEMBER_PROTOCOL_SIGNED) first, and
//! unsigned by the first protocol where that is not spoken.
//!
//! As long as issuers take unsigned requests, a member that passes one on may take the signature
//! off and change the request. The joiner then rejects the certificate, which has another link key
//! or name.

use super::wire::AdmitRequest;
use crate::{
    id::MemberId,
    identity::{self, KeyPair, Signature},
    membership::Refusal,
};
use serde::{Deserialize, Serialize};

const DOMAIN: &str = "p2pvm request to join 1";

/// A request to join with the signature of its joiner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignedAdmit {
    pub request: AdmitRequest,
    signature: Signature,
}

impl SignedAdmit {
    /// Signs with the joiner's keys.
    pub fn sign(joiner: &KeyPair, request: AdmitRequest) -> Self {
        let signature = joiner.sign(DOMAIN, &signed(&request));
        Self { request, signature }
    }

    /// Whether `joiner` signed it.
    ///
    /// # Errors
    /// [`Refusal::Tampered`].
    pub fn verify(&self, joiner: MemberId) -> Result<(), Refusal> {
        identity::verify(&joiner.0, DOMAIN, &signed(&self.request), &self.signature)
            .then_some(())
            .ok_or(Refusal::Tampered)
    }
}

fn signed(request: &AdmitRequest) -> Vec<u8> {
    postcard::to_stdvec(request).unwrap_or_default()
}

/// A request to join as it came.
#[derive(Clone, Debug)]
pub enum JoinRequest {
    /// From a joiner of the first release.
    Unsigned(AdmitRequest),
    Signed(SignedAdmit),
}

impl JoinRequest {
    /// What is asked for.
    pub fn request(&self) -> &AdmitRequest {
        match self {
            Self::Unsigned(request) => request,
            Self::Signed(signed) => &signed.request,
        }
    }

    /// Whether it is `joiner`'s, as far as it says.
    ///
    /// # Errors
    /// [`Refusal::Tampered`].
    pub fn verify(&self, joiner: MemberId) -> Result<(), Refusal> {
        match self {
            Self::Unsigned(_) => Ok(()),
            Self::Signed(signed) => signed.verify(joiner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::LinkKey, membership::golden_tests::invite};

    #[test]
    fn a_request_with_another_link_key_name_or_joiner_is_tampered_with() {
        let (joiner, other) = (KeyPair::from_seed(&[1; 32]), KeyPair::from_seed(&[2; 32]));
        let request = AdmitRequest {
            invite: invite(),
            name: "gamma".into(),
            link_key: LinkKey([3; 32]),
        };
        let signed = SignedAdmit::sign(&joiner, request);
        let me = MemberId(joiner.public());
        assert_eq!(signed.verify(me), Ok(()));
        let tampered = Err(Refusal::Tampered);
        assert_eq!(signed.verify(MemberId(other.public())), tampered);
        let mut swapped = signed.clone();
        swapped.request.link_key = LinkKey([4; 32]);
        assert_eq!(swapped.verify(me), tampered);
        let mut renamed = signed;
        renamed.request.name = "delta".into();
        assert_eq!(JoinRequest::Signed(renamed).verify(me), tampered);
    }
}
