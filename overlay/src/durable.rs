//! Files that a crash does not spoil ([`p2pvm_host::durable`]), and how to write them where other
//! tasks must not wait for a disk that takes seconds for it.

pub use p2pvm_host::durable::*;

use std::{io, path::Path, sync::Mutex};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Does what may take as long as the disk likes; a runtime with several threads hands the other
/// tasks of this one to another.
pub fn apart<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A file that is rewritten as a whole: one writer at a time, each with what is newest when its
/// turn comes.
#[derive(Default)]
pub struct Rewritten(Mutex<()>);

impl Rewritten {
    /// Writes what `newest` gives, [`apart`]. When it returns, that or something newer is on disk.
    ///
    /// # Errors
    /// What the file system says; the old content is there still.
    pub fn write(
        &self,
        path: &Path,
        newest: impl FnOnce() -> Vec<u8>,
        mode: u32,
    ) -> io::Result<()> {
        apart(|| {
            let _turn = self
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            write_atomically(path, &newest(), mode)
        })
    }
}
