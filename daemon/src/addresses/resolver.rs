//! Lets this host's programs find the network's names: gives [`p2pvm_host::names`] the settings of
//! this network, and notes in the journal what it changes on this machine. The daemon undoes the
//! changes when it ends; after a kill its guardian does, or the next daemon, or `p2pvm down`
//! ([`super::changed`]).

use super::changed::NamesChanged;
use crate::{config::Config, layout::Layout, machine::changes};
use p2pvm_api::{Doing, Outcome};
use p2pvm_dhcp::dns::Upstream;
use p2pvm_host::{
    Board,
    names::{Keeper, Settings, scene::Places},
};
use p2pvm_overlay::membership::NetworkConfig;
use std::{fmt::Write as _, io, net::IpAddr, sync::Arc};

/// How many letters of the network's id are used. Reason: they are unique on one machine.
const ID_LETTERS: usize = 10;

/// Points this host's programs to the resolver; without a keeper it does nothing.
pub struct Integration(Option<Arc<Keeper>>);

impl Integration {
    /// Starts to watch this host's lists of name servers, if the settings ask for it. It changes
    /// nothing yet.
    pub fn start(
        layout: &Layout,
        config: &Config,
        network: &NetworkConfig,
        upstream: &Upstream,
        board: Board,
    ) -> Outcome<Self> {
        if !config.uses_resolver() {
            return Ok(Self(None));
        }
        let settings = settings(config, network);
        let (layout, id) = (layout.clone(), settings.id.clone());
        let before = move |path: &std::path::Path| {
            let note = |names: &mut NamesChanged| {
                names.id.clone_from(&id);
                if !names.files.iter().any(|known| known == path) {
                    names.files.push(path.to_owned());
                }
            };
            changes::note_names(&layout, note)
                .map_err(|failure| io::Error::other(failure.to_string()))
        };
        let keeper = Keeper::start(
            settings,
            Arc::new(upstream.clone()),
            board,
            Box::new(before),
        )
        .doing("watching the name servers")?;
        Ok(Self(Some(Arc::new(keeper))))
    }

    /// The keeper, which points programs to our resolver.
    pub fn keeper(&self) -> Option<Arc<Keeper>> {
        self.0.clone()
    }

    /// Removes our resolver from this host's lists of name servers.
    pub async fn end(&self) {
        if let Some(keeper) = self.keeper() {
            // The keeper waits for other programs, which end soon or are killed.
            let _ = tokio::task::spawn_blocking(move || keeper.end()).await;
        }
    }
}

fn settings(config: &Config, network: &NetworkConfig) -> Settings {
    let id: String = network.id.to_string().chars().take(ID_LETTERS).collect();
    let mut zones = domains(network);
    let reverse = zones.split_off(1);
    Settings {
        places: Places::default(),
        id: format!("{id}/{}", config.device),
        device: config.device.clone(),
        domain: zones.remove(0),
        reverse,
        subnets: vec![
            (IpAddr::V4(network.subnet.addr), network.subnet.prefix),
            (IpAddr::V6(network.ula_prefix()), 48),
        ],
    }
}

/// The zones of the network: its domain, and the reverse zones of its addresses.
fn domains(network: &NetworkConfig) -> Vec<String> {
    let mut domains = vec![format!("{}.p2p", network.name)];
    let (first, bits) = (
        network.subnet.addr.octets(),
        usize::from(network.subnet.prefix),
    );
    // A reverse zone ends at a whole octet: a prefix that does not needs several zones.
    let (whole, spare) = (bits.div_ceil(8), (8 - bits % 8) % 8);
    for n in 0..1u16 << spare {
        let mut zone = String::new();
        for at in (0..whole).rev() {
            let octet = if at == whole - 1 {
                u16::from(first[at]) + n
            } else {
                u16::from(first[at])
            };
            let _ = write!(zone, "{octet}.");
        }
        domains.push(zone + "in-addr.arpa");
    }
    let ula = network.ula_prefix().octets();
    let nibbles = ula[..6]
        .iter()
        .rev()
        .map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4))
        .collect::<String>();
    domains.push(nibbles + "ip6.arpa");
    domains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::changed::undo;
    use p2pvm_host::names::file;
    use p2pvm_overlay::{UnixTime, identity::KeyPair, membership::Ipv4Subnet};
    use std::fs;

    fn found(addr: [u8; 4], prefix: u8) -> NetworkConfig {
        let subnet = Ipv4Subnet::new(addr.into(), prefix).unwrap();
        NetworkConfig::found(&KeyPair::from_seed(&[1; 32]), "lab", subnet, UnixTime(1)).unwrap()
    }

    #[test]
    fn reverse_zones_cover_the_subnet_and_no_more() {
        let domains_of = |addr: [u8; 4], prefix| domains(&found(addr, prefix));
        let domains = domains_of([10, 9, 0, 0], 16);
        assert_eq!(domains[..2], ["lab.p2p", "9.10.in-addr.arpa"]);
        assert!(
            domains[2].ends_with(".d.f.ip6.arpa") && domains[2].len() == 12 * 2 + "ip6.arpa".len(),
            "{}",
            domains[2]
        );
        let several = domains_of([10, 9, 64, 0], 18);
        assert_eq!(
            (several.len(), several[1].as_str(), several[64].as_str()),
            (66, "64.9.10.in-addr.arpa", "127.9.10.in-addr.arpa")
        );
    }

    #[test]
    fn what_was_changed_is_undone_from_what_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        let original = "nameserver 192.0.2.1\n";
        let settings = settings(&Config::default(), &found([10, 9, 0, 0], 16));
        let [new, old, gone] = ["new", "old", "gone"].map(|name| dir.path().join(name));
        fs::write(&new, original).unwrap();
        let block = file_block(&settings);
        file::put(&new, &block, false, |_| Ok(())).unwrap();
        let mark =
            "# The next line is p2pvm's; it goes when its daemon ends, or with 'p2pvm down'.";
        fs::write(&old, format!("{mark}\nnameserver 10.9.0.1\n{original}")).unwrap();
        let mut names = NamesChanged {
            resolv_conf: Some(old.clone()),
            files: vec![new.clone(), gone],
            id: settings.id,
        };
        undo(&mut names).unwrap();
        assert_eq!(names, NamesChanged::default());
        for file in [new, old] {
            assert_eq!(fs::read_to_string(file).unwrap(), original);
        }
        let mut names = NamesChanged {
            files: vec!["/dev/null".into()],
            id: "x".into(),
            ..NamesChanged::default()
        };
        assert!(
            undo(&mut names).is_err() && names.files.len() == 1,
            "what is not undone stays written down"
        );
    }

    fn file_block(settings: &Settings) -> p2pvm_host::names::text::Block {
        let Settings {
            id,
            domain,
            subnets,
            ..
        } = settings.clone();
        p2pvm_host::names::text::Block {
            id,
            server: [127, 77, 0, 1].into(),
            domain,
            subnets,
            made: None,
        }
    }
}
