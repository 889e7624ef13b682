//! A key that is overwritten when it is dropped. `ring` keeps expanded keys as plain memory and
//! does not overwrite them; this holds the only lasting copy of one. Copies that the compiler made
//! on the stack cannot be reached.

use ring::aead::LessSafeKey;
use std::{
    mem::{MaybeUninit, needs_drop},
    ops::Deref,
};

/// An AEAD key whose memory is zero once it is gone.
pub(super) struct WipedKey(MaybeUninit<LessSafeKey>);

impl WipedKey {
    pub fn new(key: LessSafeKey) -> Self {
        Self(MaybeUninit::new(key))
    }
}

impl Deref for WipedKey {
    type Target = LessSafeKey;

    fn deref(&self) -> &LessSafeKey {
        // SAFETY: `new` wrote a key, and only `drop`, after which nobody can look, overwrites it.
        unsafe { self.0.assume_init_ref() }
    }
}

impl Drop for WipedKey {
    fn drop(&mut self) {
        const {
            assert!(
                !needs_drop::<LessSafeKey>(),
                "it would own memory that is not wiped here"
            )
        }
        // SAFETY: any bytes are a value of MaybeUninit, and the key is not used after this.
        unsafe { zeroize::zeroize_flat_type(&raw mut self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::aead::{AES_256_GCM, UnboundKey};
    use std::mem::ManuallyDrop;

    #[test]
    fn nothing_of_the_key_is_left() {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[0x5a; 32]).expect("32 bytes"));
        let mut kept = ManuallyDrop::new(WipedKey::new(key));
        let at = (&raw const *kept).cast::<u8>();
        // SAFETY: `kept` lives on, its bytes are read as bytes; after the drop all of them have
        // been written.
        unsafe {
            ManuallyDrop::drop(&mut kept);
            assert!((0..size_of::<WipedKey>()).all(|i| at.add(i).read_volatile() == 0));
        }
    }
}
