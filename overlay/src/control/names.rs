//! Resolves host names by `/etc/hosts` and the name servers of `/etc/resolv.conf`, and by nothing
//! else.
//!
//! The C library is not asked. Its `getaddrinfo` loads modules named in the host's
//! `/etc/nsswitch.conf` at run time, and a statically linked program crashes on them if the host
//! has another C library (`docs/decisions/0027-static-program.md`). So names known only to such
//! modules (mDNS) are not found, in all of our programs alike.

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::Name,
};
use p2pvm_host::names::text;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long before a server is asked again, or another one is. Reason: a datagram may be lost.
const TRY: Duration = Duration::from_secs(2);
/// How long a look-up may take. Reason: programs wait as long (resolv.conf(5), `timeout`).
const LIMIT: Duration = Duration::from_secs(5);

/// The host's name servers, except p2pvm's own resolvers, which would only ask the others. Without
/// any, the one on this host is asked (resolv.conf(5)): a missing list is no failure, because
/// members' addresses may be known.
fn servers() -> (ResolverConfig, ResolverOpts) {
    let text = fs::read(RESOLV_CONF).unwrap_or_else(|error| {
        tracing::debug!(error = %p2pvm_host::chain(&error), "no list of name servers");
        Vec::new()
    });
    let original = text::parse(&text).original;
    let named = text::name_servers(&original)
        .into_iter()
        .filter(|server| server.scope.is_none());
    let mut servers: Vec<NameServerConfig> = named
        .map(|server| NameServerConfig::udp_and_tcp(server.ip))
        .collect();
    if servers.is_empty() {
        servers.push(NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into()));
    }
    let search = text::search(&original)
        .iter()
        .filter_map(|domain| Name::from_utf8(domain).ok())
        .collect();
    (
        ResolverConfig::from_parts(None, search, servers),
        ResolverOpts::default(),
    )
}

/// The addresses of `host`, which is a name or an address. The host's files are read each time,
/// because they change when a machine moves.
///
/// # Errors
/// The reason why none was found, as text.
pub async fn addresses(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let (config, mut options) = servers();
    options.timeout = options.timeout.min(TRY);
    let asked = async {
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()?;
        Ok::<_, NetError>(resolver.lookup_ip(host).await?.iter().collect())
    };
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(found) => found.map_err(|e| format!("looking up '{host}': {}", p2pvm_host::chain(&e))),
        Err(_) => Err(format!(
            "looking up '{host}': no name server answers within {} s",
            LIMIT.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    use std::thread;

    /// Runs `test` where `/etc` holds these files only; false if that needs root.
    fn with_etc(files: &[(&str, &str)], test: impl FnOnce() + Send) -> bool {
        let etc = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(etc.path().join(name), text).unwrap();
        }
        let own = || {
            // The thread's alone, and gone with it.
            if unshare(CloneFlags::CLONE_NEWNS).is_err() {
                println!("NOT RUN: a mount namespace needs root");
                return false;
            }
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(etc.path()), "/etc", none, MsFlags::MS_BIND, none).unwrap();
            test();
            true
        };
        thread::scope(|scope| scope.spawn(own).join().unwrap())
    }

    fn look_up(host: &str) -> Result<Vec<IpAddr>, String> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(addresses(host))
    }

    #[test]
    fn a_name_is_found_without_the_modules_of_the_c_library() {
        // The C library, if it were asked, would look nowhere.
        let files = [
            ("nsswitch.conf", "hosts: nowhere\n"),
            (
                "hosts",
                "192.0.2.7 collector.example\n2001:db8::7 collector.example\n",
            ),
        ];
        with_etc(&files, || {
            let mut found = look_up("collector.example").unwrap();
            found.sort();
            assert_eq!(
                found,
                [
                    "192.0.2.7".parse::<IpAddr>().unwrap(),
                    "2001:db8::7".parse().unwrap()
                ]
            );
            assert_eq!(
                look_up("192.0.2.9").unwrap(),
                ["192.0.2.9".parse::<IpAddr>().unwrap()]
            );
            assert!(look_up("no..name").unwrap_err().contains("'no..name'"));
        });
    }

    #[test]
    fn a_host_without_a_name_server_asks_its_own() {
        for files in [&[][..], &[("resolv.conf", "search lan\n")]] {
            with_etc(files, || {
                assert_eq!(asked(), [IpAddr::from(Ipv4Addr::LOCALHOST)])
            });
        }
    }

    fn asked() -> Vec<IpAddr> {
        servers()
            .0
            .name_servers()
            .iter()
            .map(|server| server.ip)
            .collect()
    }

    #[test]
    fn our_resolver_is_not_asked_and_new_servers_count_at_once() {
        let block = text::Block {
            id: "x/p2pvm0".into(),
            server: Ipv4Addr::new(127, 77, 0, 1),
            domain: "lab.p2p".into(),
            subnets: vec![],
            made: None,
        };
        let with_ours = |original: &str, alone| {
            let parsed = text::Parsed {
                original: original.into(),
                blocks: vec![block.clone()],
            };
            String::from_utf8(text::render(&parsed, alone)).unwrap()
        };
        let listed = with_ours("nameserver 192.0.2.1\nsearch lan\n", true);
        with_etc(&[("resolv.conf", &listed)], || {
            assert_eq!(asked(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
            fs::write(
                RESOLV_CONF,
                with_ours("nameserver 192.0.2.2\nbut what is this\n", false),
            )
            .unwrap();
            assert_eq!(asked(), ["192.0.2.2".parse::<IpAddr>().unwrap()]);
        });
    }
}
