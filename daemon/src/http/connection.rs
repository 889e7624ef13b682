//! One connection of a caller that may be hostile: its requests' heads have to arrive in time.

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Serves requests until the connection ends, or no further request's head arrives within
/// `head_limit`.
pub(crate) async fn converse<S>(
    stream: S,
    router: Router,
    head_limit: Duration,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_limit)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    connection.await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_caller_that_sends_half_a_head_is_not_waited_for() {
        let (mut caller, served) = tokio::io::duplex(1024);
        caller
            .write_all(b"GET /vms HTTP/1.1\r\nhost: ")
            .await
            .unwrap();
        let ended = converse(served, Router::new(), Duration::from_millis(50)).await;
        assert!(ended.unwrap_err().is_timeout());
    }
}
