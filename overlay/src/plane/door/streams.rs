//! A stream of the control plane that carries datagrams to a member UDP does not reach.

use crate::{
    id::MemberId,
    plane::{core::Inner, handle::Plane},
};
use std::sync::Arc;
use tokio::sync::mpsc;

/// The plane's end of one stream. It does not keep the plane running.
pub(crate) struct DatagramStream {
    inner: Arc<Inner>,
    member: MemberId,
    /// Weak, so that the stream's writer ends once the plane uses another stream.
    outgoing: mpsc::WeakSender<Vec<u8>>,
}

impl DatagramStream {
    /// Takes a datagram that came over the stream. Its session names the sender.
    pub(crate) fn receive(&self, datagram: &mut [u8]) {
        self.inner.inject(datagram);
    }

    /// Tells the plane that the stream has ended. A stream that replaced it meanwhile stays.
    pub(crate) fn close(self) {
        if let Some(outgoing) = self.outgoing.upgrade() {
            self.inner.detach_stream(self.member, &outgoing);
        }
    }
}

impl Plane {
    /// Puts datagrams for the member into `outgoing` from now on, in place of an earlier stream.
    pub(crate) fn attach_stream(
        &self,
        member: MemberId,
        outgoing: mpsc::Sender<Vec<u8>>,
    ) -> DatagramStream {
        let stream = DatagramStream {
            inner: self.inner().clone(),
            member,
            outgoing: outgoing.downgrade(),
        };
        self.inner().attach_stream(member, outgoing);
        stream
    }

    /// Probes the member's stream; false if it has none that is open.
    pub(crate) fn try_stream(&self, member: MemberId) -> bool {
        self.inner().try_stream(member)
    }
}
