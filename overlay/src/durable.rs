//! Files that survive a crash ([`p2pvm_host::durable`]), written without blocking other tasks when
//! the disk takes seconds.

pub use p2pvm_host::durable::*;

use crate::lock;
use std::{io, path::Path, sync::Mutex};
use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs blocking disk work; on a runtime with several threads, another thread takes over the other
/// tasks of this one.
pub fn apart<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A file that is rewritten as a whole: one writer at a time, each with the newest content when its
/// turn comes.
#[derive(Default)]
pub struct RewrittenFile(Mutex<()>);

impl RewrittenFile {
    /// Writes the result of `newest`, [`apart`]. When it returns, that or something newer is on
    /// disk.
    ///
    /// # Errors
    /// The file system's error; the old content stays.
    pub fn write(
        &self,
        path: &Path,
        newest: impl FnOnce() -> Vec<u8>,
        mode: u32,
    ) -> io::Result<()> {
        apart(|| {
            let _turn = lock(&self.0);
            write_atomically(path, &newest(), mode)
        })
    }
}
