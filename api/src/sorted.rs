//! The order of keys in what is printed.
//!
//! VMs, pongs and what was decided about VMs have always been printed with their keys in
//! alphabetical order, whatever the order of the fields of their types. It stays so: scripts
//! compare texts, and the guides show them.

use serde::{Serialize, Serializer, ser::Error};

/// Serializes with the keys of all objects, also of those within, in alphabetical order.
#[derive(Clone, Copy, Debug)]
pub struct Sorted<T>(pub T);

impl<T: Serialize> Serialize for Sorted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A map of serde_json's is a BTreeMap as long as no crate turns on its feature
        // preserve_order: the test fails then.
        serde_json::to_value(&self.0)
            .map_err(S::Error::custom)?
            .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_at_every_depth_and_nothing_else_changes() {
        #[derive(Serialize)]
        struct Inner {
            z: Option<u32>,
            a: f64,
        }
        #[derive(Serialize)]
        struct Outer {
            inner: Vec<Inner>,
            empty: Vec<u32>,
        }
        let outer = Outer {
            inner: vec![Inner { z: None, a: 1.0 }],
            empty: vec![],
        };
        assert_eq!(
            serde_json::to_string(&Sorted(&outer)).unwrap(),
            r#"{"empty":[],"inner":[{"a":1.0,"z":null}]}"#
        );
    }
}
