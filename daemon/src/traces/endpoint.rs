//! The collector's address in OTLP's form: a base URL, to which the path for spans is added
//! (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/#endpoint-urls-for-otlphttp>).

use hyper::Uri;
use std::{fmt, str::FromStr};

/// The path for spans, below the base.
const SPANS: &str = "/v1/traces";

/// A collector's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host to connect to: a name or an address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The value of the request's `host`.
    pub authority: String,
    /// The path to which spans are posted.
    pub path: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "the traces' endpoint '{text}' {why}: give the collector's OTLP/HTTP address, \
                    such as http://127.0.0.1:4318"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(format!(
                    "the traces' endpoint '{text}' asks for TLS, which p2pvm does not speak to \
                        collectors: run one on this host or in \
                     the network, send to it with http://, and let it pass spans on"
                ));
            }
            _ => return Err(wrong("does not begin with http://")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(
                "the traces' endpoint has a user or password: give them in 'headers', as \
                    authorization = \"Basic ...\""
                    .to_owned(),
            );
        }
        if uri.query().is_some() {
            return Err(wrong("has a query"));
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        let port = match authority.port_u16() {
            Some(0) => return Err(wrong("has port 0")),
            Some(port) => port,
            None if authority.as_str().ends_with(authority.host()) => 80,
            None => return Err(wrong("has an invalid port")),
        };
        let base = uri.path().trim_end_matches('/');
        let path = if base.ends_with(SPANS) {
            base.to_owned()
        } else {
            format!("{base}{SPANS}")
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            path,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_or_the_whole_address_names_where_spans_go() {
        for (text, host, port, path) in [
            ("http://127.0.0.1:4318", "127.0.0.1", 4318, "/v1/traces"),
            ("http://127.0.0.1:4318/", "127.0.0.1", 4318, "/v1/traces"),
            ("http://[::1]:4318", "::1", 4318, "/v1/traces"),
            ("http://tempo.lab/otlp/", "tempo.lab", 80, "/otlp/v1/traces"),
            (
                "http://tempo.lab:4318/v1/traces",
                "tempo.lab",
                4318,
                "/v1/traces",
            ),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(
                (
                    endpoint.host.as_str(),
                    endpoint.port,
                    endpoint.path.as_str()
                ),
                (host, port, path),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_address_of_a_collector_is_refused_with_the_reason() {
        for (text, why) in [
            ("127.0.0.1:4318", "http://"),
            ("localhost:4318", "http://"),
            ("grpc://localhost:4317", "http://"),
            ("/v1/traces", "http://"),
            ("http://", "not a URL"),
            ("http://:4318", "no host"),
            ("http://x y", "not a URL"),
            ("http://x:99999", "port"),
            ("http://x:0", "port 0"),
            ("http://x:4318/?key=1", "query"),
            ("https://x:4318", "TLS"),
            ("http://me:pass@x:4318", "headers"),
        ] {
            let said = text.parse::<Endpoint>().unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
            assert!(!said.contains("pass@"), "{said}");
        }
    }
}
