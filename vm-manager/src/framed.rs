//! Documents that hosts keep and publish (a VM's record, a checkpoint's): one byte that names the
//! format, then postcard. A reader refuses every other format, so that a newer one is never half
//! understood.

use serde::{Serialize, de::DeserializeOwned};

/// The one format there is.
const FORMAT: u8 = 1;

pub(crate) fn to_bytes<T: Serialize>(document: &T) -> Vec<u8> {
    postcard::to_extend(document, vec![FORMAT]).expect("plain fields always serialize into memory")
}

pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    take_from_bytes(bytes).map(|(document, _)| document)
}

/// The document, and what follows it.
pub(crate) fn take_from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    match bytes.split_first()? {
        (&FORMAT, rest) => postcard::take_from_bytes(rest).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_survives_and_another_format_is_refused() {
        let mut bytes = to_bytes(&("web", 7u32));
        assert_eq!(
            from_bytes::<(String, u32)>(&bytes),
            Some(("web".to_owned(), 7))
        );
        bytes[0] += 1;
        assert_eq!(from_bytes::<(String, u32)>(&bytes), None);
        assert_eq!(from_bytes::<(String, u32)>(&[]), None);
    }
}
