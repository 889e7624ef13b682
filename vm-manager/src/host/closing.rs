//! A host that is shutting down: no VM moves to it.

use super::{Host, lock};
use crate::Error;
use std::{sync::Mutex, time::Duration};
use tokio::time::Instant;

/// Until when no VM moves to this host.
#[derive(Default)]
pub(super) struct Closing(Mutex<Option<Instant>>);

impl Host {
    /// From now on no VM moves to this host, because it is shutting down; after `limit` it is not.
    pub fn close_for(&self, limit: Duration) {
        *lock(&self.closing.0) = Some(Instant::now() + limit);
    }

    /// Refuses the VM while this host is shutting down.
    pub(crate) fn must_be_open(&self, vm: &str) -> Result<(), Error> {
        match *lock(&self.closing.0) {
            Some(until) if Instant::now() < until => Err(Error::Refused(format!(
                "'{vm}' cannot come to this host: it is shutting down"
            ))),
            _ => Ok(()),
        }
    }
}
