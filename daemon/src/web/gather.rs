//! Polls the whole network for the page: one task for all browsers, and only while a page is open.

use p2pvm_api::Outcome;
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinHandle};

/// How long polling continues after the last viewer has left.
const LINGER: Duration = Duration::from_secs(10);
/// How long a page waits for the first answer before it shows what there is.
const PATIENCE: Duration = Duration::from_secs(5);
/// The age from which an answer is stale, so that a page waits for a new one.
const STALE: Duration = Duration::from_secs(15);

type LatestAnswer<T> = Option<(Instant, Arc<T>)>;

/// A query that is kept answered while a page is open.
pub struct Gather<T> {
    looked: watch::Sender<Option<Instant>>,
    told: watch::Receiver<LatestAnswer<T>>,
    task: JoinHandle<()>,
}

impl<T> Drop for Gather<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: Send + Sync + 'static> Gather<T> {
    /// Asks with `ask` every `every`. A failure keeps the previous answer.
    pub fn new<F: Future<Output = Outcome<T>> + Send>(
        every: Duration,
        ask: impl Fn() -> F + Send + 'static,
    ) -> Self {
        let (looked, mut looks) = watch::channel(None::<Instant>);
        let (tell, told) = watch::channel(None);
        let task = tokio::spawn(async move {
            loop {
                if looks
                    .wait_for(|at| at.is_some_and(|at| at.elapsed() < LINGER))
                    .await
                    .is_err()
                {
                    return;
                }
                match ask().await {
                    Ok(answer) => drop(tell.send_replace(Some((Instant::now(), Arc::new(answer))))),
                    Err(failure) => {
                        tracing::debug!(%failure, "polling the network for the dashboard failed")
                    }
                }
                tokio::time::sleep(every).await;
            }
        });
        Self { looked, told, task }
    }

    /// The newest answer; `None` if none came in time.
    pub async fn latest(&self) -> Option<Arc<T>> {
        self.looked.send_replace(Some(Instant::now()));
        let mut told = self.told.clone();
        let fresh = told.wait_for(|told| told.as_ref().is_some_and(|(at, _)| at.elapsed() < STALE));
        if let Ok(Ok(fresh)) = tokio::time::timeout(PATIENCE, fresh).await {
            return fresh.as_ref().map(|(_, answer)| answer.clone());
        }
        self.told
            .borrow()
            .as_ref()
            .map(|(_, answer)| answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn many_who_look_at_once_are_one_question() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let gather = Gather::new(Duration::from_secs(60), move || {
            let count = count.clone();
            async move { Ok(count.fetch_add(1, Ordering::SeqCst) + 1) }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        let looks = futures::future::join_all((0..20).map(|_| gather.latest())).await;
        assert!(
            looks.iter().all(|seen| seen.as_deref() == Some(&1)),
            "{looks:?}"
        );
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}
