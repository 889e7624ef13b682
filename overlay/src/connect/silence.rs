//! A path in use that falls silent is replaced at once by a stream of the control plane, which uses
//! another over TCP if its own connection is silent too
//! ([`Fabric::sound`](crate::fabric::Fabric::sound)). A firewall that starts to drop all UDP then
//! costs a few seconds, not QUIC's idle timeout and a dial. The stream is a stopgap: any other path
//! that answers replaces it, and a better path is looked for as for any link that is not direct.

use super::{Shared, state::Input, stream};
use crate::{fabric::Life, id::MemberId};
use futures::{FutureExt, future::BoxFuture};
use std::{sync::Arc, time::Instant};

/// Reports every path that falls silent, until the connector ends.
pub(crate) async fn heed(shared: Arc<Shared>) {
    let Some(mut silent) = shared.plane.take_silent() else {
        return;
    };
    while let Some(member) = silent.recv().await {
        shared.handle(Input::Silent {
            member,
            is_connected: shared.fabric.connected().contains(&member),
        });
    }
}

/// Carries the link over a stream, unless the path turns out to live.
pub(crate) fn bridge(shared: Arc<Shared>, member: MemberId) -> BoxFuture<'static, ()> {
    async move {
        let began = Instant::now();
        let life = shared.fabric.sound(member).await;
        tracing::debug!(
            ?member,
            ?life,
            ms = began.elapsed().as_millis() as u64,
            "a path fell silent"
        );
        // If QUIC fell silent and TCP did not, UDP may be blocked: that is examined now, not at the
        // next round.
        if life == Life::Replaced {
            shared.learn_again.notify_waiters();
        }
        // The far end may have opened another stream, or the path may have been replaced.
        if life == Life::Silent
            || !shared.plane.is_silent(member)
            || shared.plane.try_stream(member)
        {
            return;
        }
        match stream::open(&shared, member).await {
            Ok(()) => tracing::debug!(
                ?member,
                ms = began.elapsed().as_millis() as u64,
                "a stream carries datagrams"
            ),
            Err(error) => tracing::debug!(
                ?member,
                error = %p2pvm_host::chain(&error),
                "the member has no stream"
            ),
        }
    }
    .boxed()
}
