//! A path in use that falls silent is bridged at once: over a stream of the control plane, which
//! takes another over TCP where its own connection is silent too
//! ([`Fabric::sound`](crate::fabric::Fabric::sound)). A firewall that drops all UDP from one moment
//! on then costs a few seconds, not QUIC's idle timeout and a dial. The stream is a stopgap:
//! whatever else answers takes over, and a better path is sought as for any link that is not
//! direct.

use super::{Shared, stream};
use crate::{fabric::Life, id::MemberId};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// A member whose path is silent again is bridged anew after this.
const PAUSE: Duration = Duration::from_secs(3);

/// Heeds every path that falls silent, until the connector ends.
pub(crate) async fn heed(shared: Arc<Shared>) {
    let Some(mut silent) = shared.plane.take_silent() else {
        return;
    };
    let mut bridged: HashMap<MemberId, Instant> = HashMap::new();
    while let Some(member) = silent.recv().await {
        let now = Instant::now();
        bridged.retain(|_, at| now.saturating_duration_since(*at) < PAUSE);
        // Who has no control connection is dialled when the path is given up.
        if !bridged.contains_key(&member) && shared.fabric.connected().contains(&member) {
            bridged.insert(member, now);
            tokio::spawn(bridge(shared.clone(), member));
        }
    }
}

async fn bridge(shared: Arc<Shared>, member: MemberId) {
    let began = Instant::now();
    let life = shared.fabric.sound(member).await;
    tracing::debug!(
        ?member,
        ?life,
        ms = began.elapsed().as_millis() as u64,
        "a path fell silent"
    );
    // Where QUIC fell silent and TCP did not, UDP may be blocked: that is found out now, not at the
    // next look.
    if life == Life::Replaced {
        shared.learn_again.notify_waiters();
    }
    // Another stream may have been opened from the far end, or the path have been replaced.
    if life == Life::Silent || !shared.plane.is_silent(member) || shared.plane.try_stream(member) {
        return;
    }
    match stream::open(&shared, member).await {
        Ok(()) => tracing::debug!(
            ?member,
            ms = began.elapsed().as_millis() as u64,
            "a stream is there"
        ),
        Err(error) => tracing::debug!(?member, %error, "no stream"),
    }
}
