//! Lets this host's programs find the network's names. Where systemd-resolved runs it is told, for our interface alone,
//! that `<network>.p2p` and the reverse zones are ours. Elsewhere `/etc/resolv.conf` gets our resolver as its first name
//! server, in two marked lines before the old ones, which stay: they are asked for other names (by us) and, should this
//! daemon be killed, by everybody. Both are undone when the daemon ends; after a kill by the next one, or by
//! `p2pvm down` ([`super::changes`]).

use super::changes;
use crate::{
    config::Config,
    failure::{Doing, Failure, Kind, Outcome},
    layout::Layout,
};
use p2pvm_dhcp::dns::Upstream;
use p2pvm_overlay::membership::NetworkConfig;
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// systemd-resolved listens here while it runs.
const RESOLVED: &str = "/run/systemd/resolve/io.systemd.Resolve";
const MARK: &str = "# The next line is p2pvm's; it goes when its daemon ends, or with 'p2pvm down'.";
/// Other programs rewrite the file when the machine changes networks.
const LOOK_EVERY: Duration = Duration::from_secs(20);
const DNS_PORT: u16 = 53;

/// What is to be undone of this machine's name servers, as the journal keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamesChanged {
    /// This file names our resolver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
}

/// Undoes it, from whatever process; what remains could not be undone.
pub fn undo(names: &mut NamesChanged) -> Outcome<()> {
    if let Some(path) = &names.resolv_conf {
        restore(path)?;
        names.resolv_conf = None;
    }
    Ok(())
}

/// How this host is told about the network's names.
pub struct Integration {
    layout: Layout,
    device: String,
    domains: Vec<String>,
    on: bool,
    upstream: Upstream,
}

impl Integration {
    /// For the network's names by `upstream`'s resolver.
    pub fn new(layout: &Layout, config: &Config, network: &NetworkConfig, upstream: Upstream) -> Self {
        Self { layout: layout.clone(), device: config.device.clone(), domains: domains(network), on: config.uses_resolver(), upstream }
    }

    /// Names `server` as this host's resolver for the network for as long as it is polled.
    pub async fn hold(&self, server: Ipv4Addr) {
        if !self.on {
            return std::future::pending().await;
        }
        loop {
            let done = if Path::new(RESOLVED).exists() { self.tell_resolved(server).await } else { self.edit(server) };
            if let Err(failure) = done {
                tracing::warn!(%failure, "this host does not find the network's names by itself");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn tell_resolved(&self, server: Ipv4Addr) -> Outcome<()> {
        let routing: Vec<String> = self.domains.iter().map(|d| format!("~{d}")).collect();
        let words = |first: &[&str], rest: &[String]| -> Vec<String> {
            first.iter().map(ToString::to_string).chain(rest.iter().cloned()).collect()
        };
        for arguments in [
            words(&["dns", &self.device, &server.to_string()], &[]),
            words(&["domain", &self.device], &routing),
            words(&["default-route", &self.device, "false"], &[]),
        ] {
            resolvectl(&arguments).await?;
        }
        Ok(())
    }

    fn edit(&self, server: Ipv4Addr) -> Outcome<()> {
        let (path, text) = read(Path::new(RESOLV_CONF))?;
        let original = without_ours(&text);
        self.upstream.set(servers(&original, server));
        let wanted = with_ours(&original, server);
        if wanted == text {
            return Ok(());
        }
        changes::note_resolv_conf(&self.layout, &path)?;
        replace(&path, &wanted)
    }

    /// What [`super::changes::undo`] does not know: systemd-resolved forgets an interface that goes, but not at once.
    pub async fn end(&self) {
        if self.on
            && Path::new(RESOLVED).exists()
            && let Err(failure) = resolvectl(&["revert".to_owned(), self.device.clone()]).await
        {
            tracing::debug!(%failure, "systemd-resolved was not told");
        }
    }
}

async fn resolvectl(arguments: &[String]) -> Outcome<()> {
    let output = Command::new("resolvectl").args(arguments).output().await.doing("running resolvectl")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(Kind::Failed, format!("resolvectl {}: {}", arguments.join(" "), said.trim())))
}

/// The zones that are ours: the network's domain, and the reverse zones of its addresses.
fn domains(network: &NetworkConfig) -> Vec<String> {
    let mut domains = vec![format!("{}.p2p", network.name)];
    let (first, bits) = (network.subnet.addr.octets(), usize::from(network.subnet.prefix));
    // A zone ends at an octet: a prefix that does not needs several.
    let (whole, spare) = (bits.div_ceil(8), (8 - bits % 8) % 8);
    for n in 0..1u16 << spare {
        let mut zone = String::new();
        for at in (0..whole).rev() {
            let octet = if at == whole - 1 { u16::from(first[at]) + n } else { u16::from(first[at]) };
            let _ = write!(zone, "{octet}.");
        }
        domains.push(zone + "in-addr.arpa");
    }
    let ula = network.ula_prefix().octets();
    let nibbles = ula[..6].iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4)).collect::<String>();
    domains.push(nibbles + "ip6.arpa");
    domains
}

/// The file behind all links, and what is in it; a missing one is empty.
fn read(path: &Path) -> Outcome<(PathBuf, String)> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match fs::read(&path) {
        Ok(bytes) => Ok((path, String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((path, String::new())),
        Err(e) => Err(e).doing(format_args!("reading {}", path.display())),
    }
}

fn with_ours(original: &str, server: Ipv4Addr) -> String {
    format!("{MARK}\nnameserver {server}\n{original}")
}

/// The text without our lines; whatever others changed meanwhile stays.
fn without_ours(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        if line.trim_end() == MARK {
            lines.next_if(|next| next.starts_with("nameserver "));
        } else {
            kept.push_str(line);
        }
    }
    kept
}

/// The name servers of a `resolv.conf` besides ours; the local one where it names none (resolv.conf(5)).
fn servers(text: &str, ours: Ipv4Addr) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse::<IpAddr>().ok());
    let mut servers: Vec<_> = named.filter(|ip| *ip != IpAddr::V4(ours)).map(|ip| SocketAddr::new(ip, DNS_PORT)).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT)));
    }
    servers
}

/// Replaces the file as a whole where that is possible; a file that is mounted by itself, as in a container, is rewritten.
fn replace(path: &Path, text: &str) -> Outcome<()> {
    let temporary = path.with_extension("conf.p2pvm");
    let whole = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(fs::Permissions::from_mode(old.permissions().mode()))?;
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    let replaced = whole().or_else(|_| {
        let _ = fs::remove_file(&temporary);
        fs::write(path, text)
    });
    replaced.doing(format_args!("changing {}", path.display()))
}

/// Takes our lines out of the file again.
pub fn restore(path: &Path) -> Outcome<()> {
    let (path, text) = read(path)?;
    let original = without_ours(&text);
    if original == text { Ok(()) } else { replace(&path, &original) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::{UnixTime, identity::KeyPair, membership::Ipv4Subnet};

    const OURS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

    #[test]
    fn our_server_comes_first_and_goes_without_a_trace_whatever_else_was_changed() {
        for original in ["", "nameserver 192.0.2.1\n", "search a.org\nnameserver 192.0.2.1\noptions ndots:2", "# comment\n\n"] {
            let edited = with_ours(original, OURS);
            assert!(edited.contains("nameserver 10.9.0.1\n") && edited.find("10.9.0.1") < edited.find("192.0.2.1").or(Some(usize::MAX)));
            assert_eq!(without_ours(&edited), original);
            assert_eq!(without_ours(&with_ours(&edited, OURS)), original, "edited twice");
            let extended = format!("{edited}\nnameserver 192.0.2.9\n");
            assert_eq!(without_ours(&extended), format!("{original}\nnameserver 192.0.2.9\n"));
        }
        assert_eq!(without_ours(&format!("{MARK}\nsearch a.org\n")), "search a.org\n", "somebody took our server out already");
    }

    #[test]
    fn the_servers_that_were_there_are_asked_for_other_names() {
        let text = with_ours("nameserver 192.0.2.1\n nameserver 1.1.1.1\nnameserver\t2001:db8::1 # x\nnameserver nonsense\n", OURS);
        let found: Vec<_> = servers(&text, OURS).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(servers("", OURS), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn the_file_is_replaced_as_a_whole_behind_its_links_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("real.conf"), dir.path().join("resolv.conf"));
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let (path, text) = read(&link).unwrap();
        replace(&path, &with_ours(&text, OURS)).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::read_to_string(&link).unwrap().contains("10.9.0.1"));
        restore(&link).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn reverse_zones_cover_the_subnet_and_no_more() {
        let root = KeyPair::from_seed(&[1; 32]);
        let found = |addr: [u8; 4], prefix| {
            let subnet = Ipv4Subnet::new(addr.into(), prefix).unwrap();
            domains(&NetworkConfig::found(&root, "lab", subnet, UnixTime(1)).unwrap())
        };
        let domains = found([10, 9, 0, 0], 16);
        assert_eq!(domains[..2], ["lab.p2p", "9.10.in-addr.arpa"]);
        assert!(domains[2].ends_with(".d.f.ip6.arpa") && domains[2].len() == 12 * 2 + "ip6.arpa".len(), "{}", domains[2]);
        let several = found([10, 9, 64, 0], 18);
        assert_eq!((several.len(), several[1].as_str(), several[64].as_str()), (66, "64.9.10.in-addr.arpa", "127.9.10.in-addr.arpa"));
    }
}

#[cfg(test)]
#[path = "resolved_tests.rs"]
mod resolved_tests;
