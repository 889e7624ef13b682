//! Access to the dashboard: the checks of each request before anything else.
//!
//! - `Host` must name this listener. The page of another site whose name was made to point here
//!   (DNS rebinding) has its own name in `Host`.
//! - `Origin`, if present, must be this page. A browser says there which page sends the request.
//! - Its source must not have asked too often ([`super::limits`]).
//! - The request must carry a token, in a header that no browser adds by itself, so that another
//!   page cannot use it. A cookie would go to every port of the host. A WebSocket carries the token
//!   as the name of a subprotocol, because a page cannot set a header of its own there.
//! - The token's role must allow it: a reader's allows only the requests that change nothing.
//!
//! The token never leaves this host: it is removed before a request is forwarded to another member.

use super::{Dashboard, limits::Source};
use crate::http::caller::{is_wide, too_often};
use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use p2pvm_api::{Failure, Role};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// The subprotocol of a console's WebSocket.
pub const PROTOCOL: &str = "p2pvm-console";
/// The prefix of the token in the name of a subprotocol.
const BEARER: &str = "bearer.";
/// How long the answer to a wrong token is delayed. Reason: guessing must not cost the daemon
/// anything.
const REFUSED_AFTER: Duration = Duration::from_millis(300);

/// The page's Content-Security-Policy: scripts and connections of this origin only. Inline styles
/// are allowed because xterm.js writes a terminal's colours and sizes into the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The names of a listener.
#[derive(Clone)]
pub enum Hosts {
    /// This machine: the names of a tunnel to the unix socket at its other end.
    Local,
    /// A host of the network.
    Named {
        /// Its names.
        names: Vec<String>,
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// Its port.
        port: u16,
        /// Whether it speaks TLS.
        tls: bool,
    },
}

/// The address in an authority's host part, if that is an address. An IPv6 address, in any
/// notation, has brackets there.
fn address_of(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => host.parse().ok().map(IpAddr::V4),
    }
}

impl Hosts {
    /// Whether a request for `host` (name and port) is meant for this listener.
    pub fn are(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        // Only a name and a port: no user before it, nothing between a bracket and the port.
        let port = authority
            .port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default();
        if authority.as_str() != format!("{}{port}", authority.host()) {
            return false;
        }
        match self {
            Self::Local => ["localhost", "127.0.0.1", "[::1]"].contains(&authority.host()),
            Self::Named {
                names,
                addresses,
                port,
                tls,
            } => {
                let host = authority.host();
                let ours = address_of(host).map_or_else(
                    || names.iter().any(|name| name.eq_ignore_ascii_case(host)),
                    |address| addresses.contains(&address),
                );
                // A browser leaves out the scheme's default port.
                let usual = if *tls { 443 } else { 80 };
                ours && authority.port_u16().unwrap_or(usual) == *port
            }
        }
    }

    /// The beginning of the address of this listener's page.
    fn scheme(&self) -> &'static str {
        match self {
            Self::Named { tls: true, .. } => "https://",
            _ => "http://",
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Checks that the request is for this listener and from this page.
fn is_ours(hosts: &Hosts, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let host = text(headers, header::HOST).filter(|host| hosts.are(host));
    let Some(host) = host.filter(|_| headers.get_all(header::HOST).iter().count() == 1) else {
        return Err((
            StatusCode::MISDIRECTED_REQUEST,
            "this is not the address that 'p2pvm dashboard' prints",
        ));
    };
    match headers.get(header::ORIGIN).map(HeaderValue::to_str) {
        None => Ok(()),
        Some(Ok(origin)) if origin.strip_prefix(hosts.scheme()) == Some(host) => Ok(()),
        Some(_) => Err((
            StatusCode::FORBIDDEN,
            "requests from other pages are rejected",
        )),
    }
}

/// The token in a request.
fn shown(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = text(headers, header::AUTHORIZATION) {
        return value.strip_prefix("Bearer ");
    }
    let protocols = text(headers, header::SEC_WEBSOCKET_PROTOCOL)?;
    protocols
        .split(',')
        .find_map(|name| name.trim().strip_prefix(BEARER))
}

/// Removes from a request the token and the headers that identify the browser and its page.
fn forget(headers: &mut HeaderMap) {
    for name in [
        header::AUTHORIZATION,
        header::COOKIE,
        header::ORIGIN,
        header::REFERER,
    ] {
        headers.remove(name);
    }
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(PROTOCOL),
        );
    }
}

/// Passes requests for this listener's page, and tells the browser what the page may do.
pub async fn same_site(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let mut answer = match is_ours(&hosts, request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => refusal(status, why),
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// A refusal with its status.
fn refusal(status: StatusCode, why: impl Into<String>) -> Response {
    (status, Json(Failure::refused(why))).into_response()
}

/// Where a request comes from.
fn source_of(request: &Request) -> Source {
    let known = request.extensions().get::<Source>();
    known.copied().unwrap_or(Source::Local)
}

/// Passes requests of sources that do not ask too often.
pub async fn in_measure(
    State(dashboard): State<Arc<Dashboard>>,
    request: Request,
    next: Next,
) -> Response {
    match dashboard.limits.request(source_of(&request)) {
        Ok(()) => next.run(request).await,
        Err(wait) => too_often("too many requests from this address", wait),
    }
}

/// Passes requests with a token, and says whose it is to the layers below.
pub async fn with_token(
    State(dashboard): State<Arc<Dashboard>>,
    mut request: Request,
    next: Next,
) -> Response {
    let role = shown(request.headers()).and_then(|token| dashboard.switch.role_of(token));
    let Some(role) = role else {
        // A right token passes also after many wrong ones. Reason: any program at its holder's
        // address could keep the holder out, and 160 bits are not guessed at any rate.
        if let Err(wait) = dashboard.limits.wrong_token(source_of(&request)) {
            return too_often("too many wrong tokens from this address", wait);
        }
        tokio::time::sleep(REFUSED_AFTER).await;
        let why = "the token is missing, or is not this node's: 'p2pvm dashboard' on this member \
            prints a link that has it";
        return refusal(StatusCode::UNAUTHORIZED, why);
    };
    if let Err(wait) = dashboard.limits.with_token(&role) {
        return too_often("too many requests with this token", wait);
    }
    if is_wide(request.uri())
        && let Err(wait) = dashboard.limits.wide(&role)
    {
        return too_often("too many questions to all members", wait);
    }
    forget(request.headers_mut());
    request.extensions_mut().insert(role);
    next.run(request).await
}

/// Passes requests of operators only.
pub async fn for_operators(request: Request, next: Next) -> Response {
    if request.extensions().get::<Role>() == Some(&Role::Operator) {
        return next.run(request).await;
    }
    let why = "this token only reads: 'p2pvm dashboard' on this member prints the link of an \
        operator, which may also change something";
    refusal(StatusCode::FORBIDDEN, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(rows: &[(&'static str, &str)]) -> HeaderMap {
        rows.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn status(hosts: &Hosts, rows: &[(&'static str, &str)]) -> u16 {
        is_ours(hosts, &headers(rows)).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn a_request_for_another_name_or_from_another_page_is_refused() {
        let addresses = vec!["10.83.0.7".parse().unwrap(), "fd3b:1::7".parse().unwrap()];
        let overlay = Hosts::Named {
            names: vec!["lyon.lab.p2p".into()],
            addresses,
            port: 4080,
            tls: false,
        };
        assert_eq!(status(&overlay, &[("host", "10.83.0.7:4080")]), 200);
        assert_eq!(
            status(
                &overlay,
                &[
                    ("host", "Lyon.lab.p2p:4080"),
                    ("origin", "http://Lyon.lab.p2p:4080")
                ]
            ),
            200
        );
        for host in ["[fd3b:1::7]:4080", "[FD3B:0001:0:0::7]:4080"] {
            assert_eq!(
                status(
                    &overlay,
                    &[("host", host), ("origin", &format!("http://{host}"))]
                ),
                200,
                "{host}"
            );
        }
        for host in [
            "evil.example:4080",
            "10.83.0.7",
            "10.83.0.7:4081",
            "localhost:4080",
            "x@10.83.0.7:4080",
            "",
            "10.83.0.7:4080.evil.example",
            "[fd3b:1::7]",
            "[fd3b:1::7]:4081",
            "[fd3b:1::8]:4080",
            "fd3b:1::7:4080",
            "[fd3b:1::7].evil.example:4080",
            "[fd3b:1::7%25eth0]:4080",
            "[10.83.0.7]:4080",
            "[::ffff:10.83.0.7]:4080",
        ] {
            assert_eq!(status(&overlay, &[("host", host)]), 421, "{host}");
        }
        assert_eq!(status(&overlay, &[]), 421);
        for origin in [
            "http://evil.example",
            "null",
            "https://10.83.0.7:4080",
            "http://10.83.0.7:4081",
            "http://lyon.lab.p2p:4080",
            "http://[fd3b:1::7]:4080",
        ] {
            assert_eq!(
                status(&overlay, &[("host", "10.83.0.7:4080"), ("origin", origin)]),
                403,
                "{origin}"
            );
        }
        let mut twice = headers(&[("host", "10.83.0.7:4080")]);
        twice.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert!(is_ours(&overlay, &twice).is_err());
    }

    #[test]
    fn a_tunnel_to_the_socket_has_the_names_of_this_machine() {
        for (host, wanted) in [
            ("localhost:8080", 200),
            ("127.0.0.1:9", 200),
            ("[::1]:9", 200),
            ("evil.example:8080", 421),
            ("[::1].evil.example:9", 421),
        ] {
            assert_eq!(status(&Hosts::Local, &[("host", host)]), wanted, "{host}");
        }
    }

    #[test]
    fn a_listener_with_tls_has_a_page_of_its_own_scheme() {
        let lan = |port| Hosts::Named {
            names: Vec::new(),
            addresses: vec!["192.168.1.10".parse().unwrap()],
            port,
            tls: true,
        };
        for (port, host, origin, wanted) in [
            (8443, "192.168.1.10:8443", "https://192.168.1.10:8443", 200),
            (8443, "192.168.1.10:8443", "http://192.168.1.10:8443", 403),
            (8443, "192.168.1.10", "https://192.168.1.10", 421),
            (443, "192.168.1.10", "https://192.168.1.10", 200),
            (8443, "attic:8443", "https://attic:8443", 421),
        ] {
            let rows = [("host", host), ("origin", origin)];
            assert_eq!(status(&lan(port), &rows), wanted, "{host} {origin}");
        }
    }

    #[test]
    fn the_token_is_found_where_it_may_stand_and_nowhere_after() {
        assert_eq!(
            shown(&headers(&[("authorization", "Bearer abc")])),
            Some("abc")
        );
        assert_eq!(
            shown(&headers(&[(
                "sec-websocket-protocol",
                "p2pvm-console, bearer.abc"
            )])),
            Some("abc")
        );
        for rows in [
            &[("authorization", "Basic abc")][..],
            &[("cookie", "token=abc")],
            &[("sec-websocket-protocol", "p2pvm-console")],
            &[],
        ] {
            assert_eq!(shown(&headers(rows)), None, "{rows:?}");
        }
        let mut passed = headers(&[
            ("authorization", "Bearer abc"),
            ("cookie", "a=abc"),
            ("sec-websocket-protocol", "p2pvm-console, bearer.abc"),
            ("content-type", "application/json"),
        ]);
        forget(&mut passed);
        assert!(
            passed
                .values()
                .all(|value| !value.to_str().unwrap().contains("abc")),
            "{passed:?}"
        );
        assert_eq!(passed[header::CONTENT_TYPE], "application/json");
    }
}
