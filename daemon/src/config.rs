//! `node.toml`: the settings of one node. Every setting has a default; an unknown key is an error,
//! so that a misspelt one is noticed.

mod heal;
mod lan;

use crate::{
    event_log,
    layout::{Layout, read_if_there},
    offer::settings::Offer,
    service, store, traces,
};
use p2pvm_api::{Failure, Outcome};
use p2pvm_autonomic::Placement;
use p2pvm_overlay::{control::FULL_MESH, plane::RelayOffer, ring::RingOptions};
use p2pvm_snapshot_sync::ExchangeOptions;
use p2pvm_vm_manager::{hypervisor::Accel, qemu::Probe};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};
use toml::{Spanned, de::DeTable};

/// The settings that the package installs, for the administrator to edit.
const PACKAGED: &str = "/etc/p2pvm/node.toml";

/// The settings of one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// UDP and TCP port for members (control plane); 0 for any.
    pub port: u16,
    /// UDP port of the packet plane; 0 for any.
    pub link_port: u16,
    /// The TUN interface.
    pub device: String,
    /// Ask the local router for port mappings (UPnP, PCP, NAT-PMP).
    pub upnp: bool,
    /// Addresses or DNS names at which others reach this machine from outside, if its router
    /// forwards both ports to it.
    pub reachable_at: Vec<String>,
    /// Relay datagrams between members that cannot reach each other directly.
    pub relay: bool,
    /// The limit of relaying, Mbit/s; 0 for no limit.
    pub relay_mbit: u32,
    /// Count the traffic between members and guests, for `p2pvm traffic`, shortcuts and placement.
    pub traffic: bool,
    /// "auto" probes KVM once per boot of the host; "kvm" and "tcg" force one.
    pub accel: String,
    /// A Linux kernel to probe KVM with; empty for the host's own in /boot.
    pub probe_kernel: String,
    /// Let this host's programs resolve the network's names, by systemd-resolved or
    /// /etc/resolv.conf: "auto" or "off". The default is "auto", but "off" on a testbed, whose
    /// hosts share their files.
    pub resolver: Option<String>,
    /// Let packets from the network's interface through other firewalls on this machine (Docker's,
    /// ufw's, firewalld's) that drop unknown packets: "auto" or "off". The network's policy says
    /// which packets are allowed.
    pub firewall: String,
    /// Carry multicast (such as mDNS) between this host's guests and those of other members with
    /// this setting.
    pub multicast: bool,
    /// The number of processors that count as this host's capacity; 0 for all.
    pub cpus: u32,
    /// How many percent of this host's disk the snapshots of one other member may take; 0 keeps
    /// none for others.
    pub replica_percent: u8,
    /// The ring that members route over.
    pub ring: Ring,
    /// The largest network in which every member keeps a control connection to every other member.
    pub full_mesh: usize,
    /// Move VMs when this host is overloaded.
    pub autonomic: bool,
    /// What happens to the guests when this machine shuts down.
    pub at_shutdown: AtShutdown,
    /// Serve the web dashboard on this host's address in the network, unless `p2pvm dashboard` has
    /// decided otherwise.
    pub dashboard: bool,
    /// The dashboard's TCP port.
    pub dashboard_port: u16,
    /// Addresses of this host outside the network, with their ports, on which the dashboard is
    /// served with TLS too.
    pub dashboard_lan: Vec<SocketAddr>,
    /// What this host offers to other members.
    pub offer: Offer,
    /// What this host does for VMs that are to outlive it.
    pub heal: heal::Heal,
    /// When VMs are moved.
    pub placement: Placement,
    /// How stored chunks are searched for damage.
    pub store: store::settings::Settings,
    /// Where OpenTelemetry traces of migrations go.
    pub traces: traces::Settings,
    /// How much of the log of events is kept, and which events are posted to a URL.
    pub(crate) events: event_log::Settings,
    /// A sentence about a table with its previous name in the file.
    #[serde(skip)]
    pub renamed: Option<String>,
}

/// What happens to the guests when their host shuts down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtShutdown {
    /// They power down, and boot again with the host.
    #[default]
    Stop,
    /// They move to other members; those that cannot in time power down.
    Move,
}

/// `[ring]`: how many connections this member keeps beside those to its nearest neighbours.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ring {
    /// The number of far connections; 0 for log2 of the network's estimated size.
    pub far: usize,
    /// The most shortcuts at a time.
    pub shortcuts: usize,
    /// Traffic with one member above which a shortcut is opened, kB/s.
    pub shortcut_above_kbytes: u64,
    /// Traffic below which a shortcut is closed, kB/s.
    pub shortcut_below_kbytes: u64,
}

impl Default for Ring {
    fn default() -> Self {
        let RingOptions {
            max_shortcuts,
            shortcut_above,
            shortcut_below,
            ..
        } = RingOptions::default();
        Self {
            far: 0,
            shortcuts: max_shortcuts,
            shortcut_above_kbytes: shortcut_above / 1000,
            shortcut_below_kbytes: shortcut_below / 1000,
        }
    }
}

impl Ring {
    /// These settings as the overlay's options.
    pub fn options(&self) -> RingOptions {
        RingOptions {
            far: (self.far > 0).then_some(self.far),
            max_shortcuts: self.shortcuts,
            shortcut_above: self.shortcut_above_kbytes.saturating_mul(1000),
            shortcut_below: self.shortcut_below_kbytes.saturating_mul(1000),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 4001,
            link_port: 4002,
            device: "p2pvm0".to_owned(),
            upnp: true,
            reachable_at: Vec::new(),
            relay: true,
            relay_mbit: 100,
            traffic: true,
            accel: "auto".to_owned(),
            probe_kernel: String::new(),
            resolver: None,
            firewall: "auto".to_owned(),
            multicast: false,
            cpus: 0,
            replica_percent: ExchangeOptions::default().replica_percent,
            ring: Ring::default(),
            full_mesh: FULL_MESH,
            autonomic: true,
            at_shutdown: AtShutdown::default(),
            dashboard: false,
            dashboard_port: 4080,
            dashboard_lan: Vec::new(),
            offer: Offer::default(),
            heal: heal::Heal::default(),
            placement: Placement::default(),
            store: store::settings::Settings::default(),
            traces: traces::Settings::default(),
            events: event_log::Settings::default(),
            renamed: None,
        }
    }
}

impl Config {
    /// Reads `node.toml` in the state directory; if it is missing, the package's settings (for the
    /// service's state directory only); otherwise returns the defaults.
    pub fn load(layout: &Layout) -> Outcome<Self> {
        let mut path = layout.config();
        let mut bytes = read_if_there(&path)?;
        if bytes.is_none() && layout.dir() == Path::new(service::STATE_DIR) {
            path = PathBuf::from(PACKAGED);
            bytes = read_if_there(&path)?;
        }
        let Some(bytes) = bytes else {
            return Ok(Self::default());
        };
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::usage(format!("{} is not UTF-8", path.display())))?;
        let config = Self::parse(&text)
            .map_err(|why| Failure::usage(format!("{}: {why}", path.display())))?;
        let config = Self {
            renamed: config
                .renamed
                .map(|what| format!("{}: {what}", path.display())),
            ..config
        };
        config
            .check()
            .map_err(|why| Failure::usage(format!("{}: {why}", path.display())))?;
        Ok(config)
    }

    /// Says which value cannot be used, and which can. The error is a sentence without the file's
    /// name.
    fn check(&self) -> Result<(), String> {
        if !["auto", "kvm", "tcg"].contains(&self.accel.as_str()) {
            return Err(format!(
                "accel must be auto, kvm or tcg, not '{}'",
                self.accel
            ));
        }
        if let Some(resolver) = self
            .resolver
            .as_deref()
            .filter(|r| !["auto", "off"].contains(r))
        {
            return Err(format!("resolver must be auto or off, not '{resolver}'"));
        }
        if !["auto", "off"].contains(&self.firewall.as_str()) {
            return Err(format!(
                "firewall must be auto or off, not '{}'",
                self.firewall
            ));
        }
        if let Some(why) = p2pvm_host::owner::bad_name(&self.device) {
            return Err(format!(
                "device '{}' cannot be an interface's name: {why}; p2pvm0 is the usual one",
                self.device
            ));
        }
        if self.replica_percent > 100 {
            return Err(format!(
                "replica_percent must be 0 to 100, not {}",
                self.replica_percent
            ));
        }
        if self.dashboard_port == 0 {
            return Err(
                "dashboard_port must be 1 to 65535: a link to it has to stay the same".to_owned(),
            );
        }
        lan::check(&self.dashboard_lan)?;
        if let Some(place) = self.reachable_at.iter().find(|place| !is_place(place)) {
            return Err(format!(
                "reachable_at holds '{place}', which is neither an address nor a DNS name"
            ));
        }
        self.offer.check()?;
        self.heal.check()?;
        self.placement.check().map_err(|e| e.to_string())?;
        self.events.check()?;
        self.store.check()?;
        self.traces.check()
    }

    /// Parses the settings; `[placement]` may have its previous name. The error is a sentence
    /// without the file's name.
    fn parse(text: &str) -> Result<Self, String> {
        let mut tables = DeTable::parse(text).map_err(|e| e.to_string())?;
        let previous = tables.get_mut().remove_entry("policy");
        let renamed = previous.is_some().then(|| {
            "[policy] is now called [placement]; it is still read by its previous name".to_owned()
        });
        if let Some((key, table)) = previous {
            if tables.get_ref().contains_key("placement") {
                return Err(
                    "[policy] is the previous name of [placement], and both are there: \
                    move all into [placement]"
                        .to_owned(),
                );
            }
            tables
                .get_mut()
                .insert(Spanned::new(key.span(), "placement".into()), table);
        }
        let config = Self::deserialize(toml::Deserializer::from(tables)).map_err(|mut error| {
            error.set_input(Some(text));
            error.to_string()
        })?;
        Ok(Self { renamed, ..config })
    }

    /// The control plane's addresses that follow from `reachable_at`.
    pub fn public_addresses(&self) -> Vec<String> {
        let of = |place: &String| {
            let host = match place.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) => format!("/ip4/{ip}"),
                Ok(IpAddr::V6(ip)) => format!("/ip6/{ip}"),
                Err(_) => format!("/dns/{place}"),
            };
            [
                format!("{host}/udp/{}/quic-v1", self.port),
                format!("{host}/tcp/{}", self.port),
            ]
        };
        self.reachable_at.iter().flat_map(of).collect()
    }

    /// The packet plane's address that follows from `reachable_at`; DNS names do not count.
    pub fn outside(&self) -> Option<SocketAddr> {
        let ip = self
            .reachable_at
            .iter()
            .find_map(|place| place.parse::<IpAddr>().ok())?;
        Some(SocketAddr::new(ip, self.link_port))
    }

    /// Whether and how much this node relays for others.
    pub fn relay(&self) -> RelayOffer {
        RelayOffer {
            willing: self.relay,
            bits_per_second: u64::from(self.relay_mbit) * 1_000_000,
        }
    }

    /// Whether this host's programs are to resolve the network's names.
    pub fn uses_resolver(&self) -> bool {
        match self.resolver.as_deref() {
            Some(said) => said == "auto",
            None => std::env::var_os("P2PVM_HOST").is_none(),
        }
    }

    /// The accelerator that the settings force.
    pub fn accel(&self) -> Option<Accel> {
        match self.accel.as_str() {
            "kvm" => Some(Accel::Kvm),
            "tcg" => Some(Accel::Tcg),
            _ => None,
        }
    }

    /// What KVM is probed with, if there is anything.
    pub fn probe(&self) -> Option<Probe> {
        let kernel = if self.probe_kernel.is_empty() {
            let release = nix::sys::utsname::uname()
                .ok()?
                .release()
                .to_str()?
                .to_owned();
            PathBuf::from(format!("/boot/vmlinuz-{release}"))
        } else {
            PathBuf::from(&self.probe_kernel)
        };
        kernel.exists().then_some(Probe::Kernel(kernel))
    }
}

/// Whether `text` is an IP address or can be a DNS name.
fn is_place(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.parse::<IpAddr>().is_ok()
        || (text.len() <= 253 && text.contains('.') && text.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_unfit_for_the_kernel_is_refused_with_reason() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        for (name, why) in [
            ("%d", "'%'"),
            ("all", "kernel"),
            ("a/b", "'/'"),
            ("", "empty"),
            ("a name", "' '"),
            ("0123456789abcdef", "15"),
        ] {
            std::fs::write(layout.config(), format!("device = \"{name}\"\n")).unwrap();
            let said = Config::load(&layout).unwrap_err().to_string();
            assert!(
                said.contains(why) && said.contains("node.toml"),
                "{name}: {said}"
            );
        }
        std::fs::write(layout.config(), "replica_percent = 101\n").unwrap();
        assert!(
            Config::load(&layout)
                .unwrap_err()
                .to_string()
                .contains("replica_percent must be 0 to 100")
        );
        std::fs::write(layout.config(), "firewall = \"on\"\n").unwrap();
        assert!(
            Config::load(&layout)
                .unwrap_err()
                .to_string()
                .contains("firewall must be auto or off")
        );
    }

    #[test]
    fn image_directories_are_absolute_and_unknown_offers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let load = |text: &str| {
            std::fs::write(layout.config(), text).unwrap();
            Config::load(&layout)
        };
        let offer = load("[offer]\nimages = [\"/srv/images\"]\n").unwrap().offer;
        let dirs: Vec<PathBuf> = vec!["/usr/lib/p2pvm".into(), "/srv/images".into()];
        assert_eq!(offer.image_dirs(), dirs);
        for bad in ["images", "/", "/srv/../etc", ""] {
            let said = load(&format!("[offer]\nimages = [\"{bad}\"]\n")).unwrap_err();
            assert!(said.to_string().contains("[offer] images"), "{bad}: {said}");
        }
        let said = load("[offer]\nimage = []\n").unwrap_err().to_string();
        assert!(said.contains("unknown field `image`"), "{said}");
    }

    #[test]
    fn the_previous_name_of_placement_is_read_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let load = |text: &str| {
            std::fs::write(layout.config(), text).unwrap();
            Config::load(&layout)
        };
        for text in [
            "[policy]\nmin_gain = 0.3\n",
            "policy.min_gain = 0.3\n",
            "cpus = 1\npolicy = { min_gain = 0.3 }\n",
        ] {
            let config = load(text).unwrap();
            assert_eq!(
                config.placement,
                Placement {
                    min_gain: 0.3,
                    ..Placement::default()
                },
                "{text}"
            );
            let said = config.renamed.unwrap();
            assert!(
                said.contains("node.toml: [policy] is now called [placement]"),
                "{said}"
            );
        }
        let config = load("[placement]\nmin_gain = 0.3\n").unwrap();
        assert_eq!((config.placement.min_gain, config.renamed), (0.3, None));
    }

    #[test]
    fn both_names_of_placement_and_unknown_keys_are_refused_with_their_place() {
        let refused = |text: &str| Config::parse(text).unwrap_err();
        let both = refused("[placement]\nmin_gain = 0.3\n[policy]\nmin_gain = 0.2\n");
        assert!(
            both.contains("[policy]") && both.contains("both") && both.contains("into [placement]"),
            "{both}"
        );
        let unknown = refused("cpus = 1\ncolour = 1\n[policy]\nmin_gain = 0.2\n");
        assert!(
            unknown.contains("line 2, column 1") && unknown.contains("unknown field `colour`"),
            "{unknown}"
        );
        assert!(
            unknown.contains("`placement`") && !unknown.contains("`policy`"),
            "{unknown}"
        );
        let within = refused("[policy]\nmin_gian = 0.2\n");
        assert!(
            within.contains("line 2") && within.contains("unknown field `min_gian`"),
            "{within}"
        );
        assert!(refused("renamed = \"x\"\n").contains("unknown field `renamed`"));
    }

    #[test]
    fn a_place_in_the_settings_becomes_the_addresses_that_others_dial() {
        let config = Config {
            reachable_at: vec!["home.example.org".into(), "203.0.113.9".into()],
            ..Config::default()
        };
        let addresses = config.public_addresses();
        assert_eq!(
            addresses[..2],
            [
                "/dns/home.example.org/udp/4001/quic-v1",
                "/dns/home.example.org/tcp/4001"
            ]
        );
        assert_eq!(
            addresses[2..],
            [
                "/ip4/203.0.113.9/udp/4001/quic-v1",
                "/ip4/203.0.113.9/tcp/4001"
            ]
        );
        assert_eq!(config.outside(), Some("203.0.113.9:4002".parse().unwrap()));
        assert!(
            ["203.0.113.9", "2001:db8::1", "home.example.org"]
                .iter()
                .all(|place| is_place(place))
        );
        assert!(
            ![
                "",
                "home",
                "203.0.113.9:4001",
                "http://x.org",
                "a..b",
                "x y.org"
            ]
            .iter()
            .any(|place| is_place(place))
        );
    }

    /// The packaged file has each setting with its default, as a comment whose `#` can be removed.
    #[test]
    fn the_packaged_settings_name_every_setting_with_its_default() {
        let packaged = include_str!("../../packaging/node.toml");
        assert_eq!(
            toml::from_str::<toml::Table>(packaged).unwrap(),
            toml::Table::new(),
            "as it is installed it changes nothing"
        );
        let uncommented: String = packaged
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|l| !l.starts_with(' '))
            .map(|l| format!("{l}\n"))
            .collect();
        let read: Config = toml::from_str(&uncommented).unwrap();
        let as_table = |config: &Config| toml::Table::try_from(config).unwrap();
        assert_eq!(as_table(&read), as_table(&Config::default()));
        let named: toml::Table = toml::from_str(&uncommented).unwrap();
        for key in as_table(&Config::default()).keys() {
            assert!(
                named.contains_key(key),
                "{key} is not in packaging/node.toml"
            );
        }
    }
}
