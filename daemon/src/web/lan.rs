//! The dashboard on a LAN, where `dashboard_lan` in node.toml names addresses of this host. It is
//! served with TLS only, because everybody on the LAN could read a token that is sent in the clear,
//! and only while the dashboard is on.

use super::{
    Dashboard,
    access::Hosts,
    certificate::Certificate,
    limits::Source,
    routes,
    serve::{HEAD_LIMIT, RETRY, Seats, accept, serve_connection},
};
use crate::{config::Config, layout::Layout};
use axum::Extension;
use p2pvm_api::Outcome;
use p2pvm_host::{chain, lock};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::net::{TcpListener, TcpStream};

/// The addresses on a LAN, and their certificate.
pub struct Lan {
    addresses: Vec<SocketAddr>,
    certificate: Certificate,
    /// Why an address is not served.
    trouble: Mutex<BTreeMap<SocketAddr, String>>,
}

impl Lan {
    /// None if the settings name no address.
    pub fn open(layout: &Layout, config: &Config) -> Outcome<Option<Self>> {
        let addresses = config.dashboard_lan.clone();
        if addresses.is_empty() {
            return Ok(None);
        }
        let mut names: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
        names.sort();
        names.dedup();
        let certificate = Certificate::open(&layout.dashboard_certificate(), &names)?;
        Ok(Some(Self {
            addresses,
            certificate,
            trouble: Mutex::default(),
        }))
    }

    /// Where it is served.
    pub fn urls(&self) -> Vec<String> {
        let url = |at: &SocketAddr| format!("https://{at}/");
        self.addresses.iter().map(url).collect()
    }

    /// The certificate's fingerprint.
    pub fn fingerprint(&self) -> String {
        self.certificate.fingerprint()
    }

    /// Why not all addresses are served.
    pub fn trouble(&self) -> Option<String> {
        let trouble = lock(&self.trouble);
        let all: Vec<&str> = trouble.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn note_trouble(&self, at: SocketAddr, why: Option<String>) {
        let mut trouble = lock(&self.trouble);
        match why {
            Some(why) => drop(trouble.insert(at, why)),
            None => drop(trouble.remove(&at)),
        }
    }

    /// Listens as soon as the address is there.
    async fn bind(&self, at: SocketAddr) -> TcpListener {
        let mut is_told = false;
        loop {
            match TcpListener::bind(at).await {
                Ok(listener) => {
                    self.note_trouble(at, None);
                    return listener;
                }
                Err(error) => {
                    let why = format!(
                        "cannot listen on {at}, which dashboard_lan in node.toml names: {}",
                        chain(&error)
                    );
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!("the dashboard is not served on the LAN: {why}");
                    }
                    self.note_trouble(at, Some(why));
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Dashboard {
    /// Serves on the LAN's addresses while the dashboard is switched on.
    pub(super) async fn serve_lan(self: Arc<Self>) {
        let Some(lan) = &self.lan else { return };
        let mut switch = self.switch.follow();
        loop {
            let on = *switch.borrow_and_update();
            let serving = async {
                if on {
                    let seats = Seats::default();
                    let all = lan.addresses.iter().copied();
                    let all = all.map(|at| self.serve_lan_at(lan, at, &seats));
                    futures::future::join_all(all).await;
                }
                std::future::pending::<()>().await
            };
            // Dropping `serving` closes all connections, so that off means off.
            tokio::select! {
                () = serving => {}
                changed = switch.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn serve_lan_at(self: &Arc<Self>, lan: &Lan, at: SocketAddr, seats: &Seats) {
        let listener = lan.bind(at).await;
        tracing::info!(%at, "the dashboard is served on the LAN");
        self.serve_tls(lan, listener, at, seats).await;
    }

    /// Serves one listener whose address the caller knows as `at`.
    async fn serve_tls(
        self: &Arc<Self>,
        lan: &Lan,
        listener: TcpListener,
        at: SocketAddr,
        seats: &Seats,
    ) {
        let hosts = Hosts::Named {
            names: Vec::new(),
            addresses: vec![at.ip()],
            port: at.port(),
            tls: true,
        };
        let router = routes::router(self, hosts);
        let acceptor = lan.certificate.acceptor();
        let serve = |stream: TcpStream, source: Source| {
            let router = router.clone().layer(Extension(source));
            let greeting = acceptor.accept(stream);
            async move {
                match tokio::time::timeout(HEAD_LIMIT, greeting).await {
                    Ok(Ok(stream)) => serve_connection(stream, router).await,
                    Ok(Err(error)) => {
                        tracing::debug!(error = %chain(&error), "no TLS with a dashboard's caller")
                    }
                    Err(_) => tracing::debug!("a dashboard's caller does not speak TLS"),
                }
            }
        };
        accept(&listener, seats, |ip| Some(Source::outside(ip)), serve).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{web::certificate::tests::connector, wiring::alone::Alone};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Asks for the page's view, and returns the answer's head and body.
    async fn ask<S: AsyncReadExt + AsyncWriteExt + Unpin>(
        mut stream: S,
        host: SocketAddr,
        token: &str,
    ) -> String {
        let request = format!(
            "GET /v1/view HTTP/1.1\r\nhost: {host}\r\norigin: https://{host}\r\n\
             authorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A stream that ends without TLS's farewell is still an answer.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lan_is_served_with_tls_and_plain_http_gets_nothing() {
        let alone = Alone::start().await;
        let dashboard = alone.services.dashboard.clone();
        let token = dashboard.state().token;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let config = Config {
            dashboard_lan: vec![at],
            ..Config::default()
        };
        let lan = Lan::open(&alone.layout, &config).unwrap().unwrap();
        assert_eq!(lan.urls(), [format!("https://{at}/")]);
        let trusting = connector(&lan.certificate);
        let serving = tokio::spawn(async move {
            dashboard
                .serve_tls(&lan, listener, at, &Seats::default())
                .await;
        });
        let name = rustls::pki_types::ServerName::from(at.ip());
        let stream = TcpStream::connect(at).await.unwrap();
        let stream = trusting.connect(name, stream).await.unwrap();
        let answer = ask(stream, at, &token).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let plain = ask(TcpStream::connect(at).await.unwrap(), at, &token).await;
        assert!(!plain.contains("HTTP/1.1"), "{plain}");
        serving.abort();
    }
}
