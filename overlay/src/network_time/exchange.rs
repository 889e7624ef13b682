//! Asks members for their clocks, and answers them: one small request a member and minute over
//! existing connections. A member of a release without this service is asked less often.

use super::{ClockReport, NetworkTime, Reading};
use crate::{
    fabric::{Fabric, Serve},
    id::MemberId,
};
use async_trait::async_trait;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, JoinSet};

/// The fabric service of clocks.
pub(super) const SERVICE: &str = "clock";
/// How long to wait for an answer. Reason: it takes one round trip, and a slower one is too
/// inexact.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// How long before a member is asked again.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// How long before a member that did not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How many members are asked in one round: enough of a sample in a large network.
const AT_ONCE: usize = 16;
/// How long before new connections are looked for again: at first, and once a member has answered.
const GLANCE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long the first phase lasts.
const HASTY: Duration = Duration::from_secs(20);

/// Keeps the network's time; dropping it stops that.
pub struct Exchange {
    task: JoinHandle<()>,
}

struct Answers(&'static NetworkTime);

#[async_trait]
impl Serve for Answers {
    async fn serve(&self, _from: MemberId, _body: Vec<u8>) -> Result<Vec<u8>, String> {
        postcard::to_stdvec(&self.0.say(Reading::now())).map_err(|e| e.to_string())
    }
}

impl Exchange {
    /// Answers members and asks them, until dropped. Needs a tokio runtime.
    pub fn start(fabric: Arc<dyn Fabric>, time: &'static NetworkTime) -> Self {
        fabric.serve(SERVICE, Arc::new(Answers(time)));
        Self {
            task: tokio::spawn(run(fabric, time)),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(fabric: Arc<dyn Fabric>, time: &'static NetworkTime) {
    let (began, mut due) = (Instant::now(), HashMap::<MemberId, Instant>::new());
    loop {
        let connected = fabric.connected();
        due.retain(|member, _| connected.contains(member));
        let now = Instant::now();
        let asked: Vec<MemberId> = connected
            .into_iter()
            .filter(|m| due.get(m).is_none_or(|at| *at <= now))
            .take(AT_ONCE)
            .collect();
        let mut asking = JoinSet::new();
        for member in asked {
            due.insert(member, now + ASK_AGAIN);
            let fabric = fabric.clone();
            asking.spawn(async move { (member, ask(&*fabric, member).await) });
        }
        while let Some(answer) = asking.join_next().await {
            let Ok((member, Some((said, reading)))) = answer else {
                continue;
            };
            due.insert(member, Instant::now() + ASK_EVERY);
            time.hear(member, said, reading);
        }
        time.settle(Reading::now());
        // A node that founds a network, or is in one of an older release, must not look so often
        // for ever.
        let hasty = time.heard_from().is_empty() && began.elapsed() < HASTY;
        tokio::time::sleep(if hasty { GLANCE.0 } else { GLANCE.1 }).await;
    }
}

/// The member's report, and our clocks half a round trip before the answer came, when it made the
/// report.
async fn ask(fabric: &dyn Fabric, member: MemberId) -> Option<(ClockReport, Reading)> {
    let before = Reading::now();
    let answer = fabric
        .call(member, SERVICE, Vec::new(), ASK_LIMIT)
        .await
        .ok()?;
    let after = Reading::now();
    let said = postcard::from_bytes(&answer).ok()?;
    let half = after.boot_ms.saturating_sub(before.boot_ms) / 2;
    Some((
        said,
        Reading {
            boot_ms: after.boot_ms - half,
            wall_ms: after.wall_ms - half,
        },
    ))
}
