//! The part of a fetch that touches the disk: chunks are verified and written, nodes are opened for
//! the chunks that they name.

use super::Scope;
use crate::{
    ChunkId, Error, chunk,
    store::Batch,
    tree::{self, Role},
};
use p2pvm_overlay::{MemberId, chain};

/// A chunk that a provider sent, not verified yet.
pub(super) struct ReceivedChunk {
    pub(super) from: MemberId,
    pub(super) role: Role,
    pub(super) id: ChunkId,
    pub(super) stored: Vec<u8>,
}

/// Work for a blocking thread: verify and write chunks, read nodes and content that are here, make
/// all durable.
pub(super) struct Job {
    pub(super) came: Vec<ReceivedChunk>,
    pub(super) open: Vec<(Role, ChunkId)>,
    pub(super) commit: bool,
    scope: Scope,
}

/// What a [`Job`] did.
#[derive(Default)]
pub(super) struct JobResult {
    pub(super) stored: Vec<(MemberId, ChunkId, usize, u64)>,
    pub(super) bad: Vec<(MemberId, ChunkId, String)>,
    pub(super) wanted: Vec<(Role, ChunkId)>,
    pub(super) open: Vec<(Role, ChunkId)>,
    /// Content that is here, not read yet.
    pub(super) verify: Vec<(Role, ChunkId)>,
    pub(super) present: u64,
    pub(super) present_bytes: u64,
}

impl Job {
    pub(super) fn new(scope: Scope) -> Self {
        Self {
            came: Vec::new(),
            open: Vec::new(),
            commit: false,
            scope,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.came.is_empty() && self.open.is_empty() && !self.commit
    }

    pub(super) fn run(self, batch: &mut Batch) -> Result<JobResult, Error> {
        let mut done = JobResult::default();
        for ReceivedChunk {
            from,
            role,
            id,
            stored,
        } in self.came
        {
            match chunk::decode(id, &stored) {
                Ok(content) => {
                    batch.put_stored(id, &stored)?;
                    done.stored.push((from, id, stored.len(), role_bytes(role)));
                    open_node(role, &content, self.scope, batch, &mut done)?;
                }
                Err(e) => done.bad.push((from, id, chain(&e))),
            }
        }
        for (role, id) in self.open {
            match batch.get(id) {
                Ok(content) => {
                    done.present += 1;
                    done.present_bytes += role_bytes(role);
                    open_node(role, &content, self.scope, batch, &mut done)?;
                }
                Err(Error::NotFound(_) | Error::Corrupt { .. }) => done.wanted.push((role, id)),
                Err(e) => return Err(e),
            }
        }
        if self.commit {
            if let Scope::All { reserve } = self.scope {
                batch.has_room(reserve)?;
            }
            batch.commit()?;
        }
        Ok(done)
    }
}

/// Sorts the chunks that a node names into missing ones, content to be read, and nodes to open.
fn open_node(
    role: Role,
    content: &[u8],
    scope: Scope,
    batch: &mut Batch,
    done: &mut JobResult,
) -> Result<(), Error> {
    for (role, id) in tree::children(role, content)? {
        let is_data = matches!(role, Role::Data { .. });
        if is_data && scope == Scope::Nodes {
            continue;
        }
        match (batch.is_known(id), is_data) {
            (false, _) => done.wanted.push((role, id)),
            (true, true) => done.verify.push((role, id)),
            (true, false) => done.open.push((role, id)),
        }
    }
    Ok(())
}

/// How many bytes of content a chunk of this role has.
pub(super) fn role_bytes(role: Role) -> u64 {
    match role {
        Role::Data { bytes } => u64::from(bytes),
        _ => 0,
    }
}
