//! `sites.toml`: the sites, the NATs and firewalls between each and the internet, and the links
//! between them.
//!
//! ```toml
//! seed = 7
//! [default]                 # links that are not listed
//! rtt_ms = 40
//! mbit = 500
//! [[site]]
//! name = "paris"
//! nat = "port-restricted"   # none, full-cone, restricted, port-restricted, symmetric, symmetric-preserving, symmetric-sequential
//! carrier = "symmetric"     # a carrier's NAT behind the home router's (absent: none)
//! ipv6 = "dual"             # none (the default), dual, only
//! firewall = true           # the router lets in only what answers, IPv6 and hosts without NAT included
//! upnp = true               # the router maps ports by UPnP, NAT-PMP and PCP
//! mtu = 1280                # of the site's line
//! hosts = ["p1", "p2"]      # or a number
//! [[link]]
//! a = "paris"
//! b = "tokyo"
//! rtt_ms = 230
//! jitter_ms = 2
//! loss = 0.001
//! mbit = 200
//! mtu = 1400                # larger packets are fragmented, or refused by ICMP
//! black_hole = true         # no ICMP: larger packets vanish
//! back = { mbit = 20 }      # from b to a, where it differs
//! ```

use crate::testbed::Error;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, path::Path, time::Duration};

/// The longest queue before a rate-limited link, by default.
const DEFAULT_QUEUE_MS: f64 = 100.0;
/// How many sites a testbed may have.
/// Reason: the third octet of an address is the site's number.
const MAX_SITES: usize = 250;
/// How many hosts a site may have.
/// Reason: host addresses begin at .10.
const MAX_HOSTS_PER_SITE: usize = 200;
/// The packet that every IPv4 host must accept (RFC 791), the least MTU of IPv6 (RFC 8200 §5), and
/// the greatest MTU of the emulated lines.
const MTUS: (u16, u16, u16) = (576, 1280, 1500);

/// How a site's router handles UDP, in the words of RFC 3489; RFC 4787's are given beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nat {
    /// Hosts have public addresses; nothing is filtered.
    #[default]
    None,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    Restricted,
    /// Endpoint-independent mapping, address and port-dependent filtering.
    PortRestricted,
    /// Address and port-dependent mapping and filtering; the public ports follow no rule.
    #[serde(alias = "symmetric-random")]
    Symmetric,
    /// As `Symmetric`, but the inside port is kept wherever no other host of the site uses it
    /// towards the same destination, as Linux routers do: a lone host is seen like one behind a
    /// port-restricted cone.
    SymmetricPreserving,
    /// As `Symmetric`, but each new mapping gets the next public port.
    SymmetricSequential,
}

impl Nat {
    /// All kinds, the easiest to traverse first.
    pub const ALL: [Nat; 7] = [
        Nat::None,
        Nat::FullCone,
        Nat::Restricted,
        Nat::PortRestricted,
        Nat::SymmetricPreserving,
        Nat::SymmetricSequential,
        Nat::Symmetric,
    ];

    /// Its name in the sites file.
    pub fn name(self) -> &'static str {
        match self {
            Nat::None => "none",
            Nat::FullCone => "full-cone",
            Nat::Restricted => "restricted",
            Nat::PortRestricted => "port-restricted",
            Nat::Symmetric => "symmetric",
            Nat::SymmetricPreserving => "symmetric-preserving",
            Nat::SymmetricSequential => "symmetric-sequential",
        }
    }
}

/// Whether a site has IPv6. Its addresses are public, whatever NAT its IPv4 has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ipv6 {
    /// IPv4 only.
    #[default]
    None,
    /// Both.
    Dual,
    /// IPv6 only.
    Only,
}

/// One direction of a link, as the forwarder applies it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// One-way delay.
    pub delay: Duration,
    /// Each packet's delay differs from `delay` by up to this much, uniformly; packets keep their
    /// order.
    pub jitter: Duration,
    /// Probability that a packet is lost, 0 to 1.
    pub loss: f64,
    /// Bits per second; 0 is no limit.
    pub bits_per_second: u64,
    /// Longest time a packet may wait for the link's rate before it is dropped.
    pub queue: Duration,
    /// Largest packet in bytes, IP header included; 0 is no limit.
    #[serde(default)]
    pub mtu: u16,
    /// Whether packets that are too large vanish without an ICMP message.
    #[serde(default)]
    pub black_hole: bool,
}

/// A site as written in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Name, unique among sites.
    pub name: String,
    /// Kind of NAT between the site's hosts and the internet.
    #[serde(default)]
    pub nat: Nat,
    /// Kind of NAT of the carrier, behind which the site's router sits: then that router has a
    /// shared address (RFC 6598).
    #[serde(default)]
    pub carrier: Nat,
    /// Whether UDP passes the site's router at all.
    #[serde(default = "yes")]
    pub udp: bool,
    /// Whether the site has IPv6.
    #[serde(default)]
    pub ipv6: Ipv6,
    /// Whether the router lets in answers alone, also towards hosts without NAT.
    #[serde(default)]
    pub firewall: bool,
    /// Whether the router maps ports when asked (UPnP, NAT-PMP, PCP), done by a real `miniupnpd`.
    #[serde(default)]
    pub upnp: bool,
    /// Largest packet of the site's line, in bytes.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Names or number of its hosts.
    #[serde(default)]
    pub hosts: Hosts,
}

/// Hosts of a site: a number of them or their names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Hosts {
    /// `n` hosts named after the site: `paris` if there is one, else `paris1`, `paris2`, …
    Count(usize),
    /// Hosts of these names.
    Names(Vec<String>),
}

impl Default for Hosts {
    fn default() -> Self {
        Hosts::Count(1)
    }
}

fn yes() -> bool {
    true
}

impl Site {
    /// Names of the site's hosts.
    pub fn host_names(&self) -> Vec<String> {
        match &self.hosts {
            Hosts::Count(1) => vec![self.name.clone()],
            Hosts::Count(n) => (1..=*n).map(|i| format!("{}{i}", self.name)).collect(),
            Hosts::Names(names) => names.clone(),
        }
    }

    /// Whether its properties are consistent.
    fn check(&self) -> Result<(), String> {
        let behind_nat = self.nat != Nat::None;
        if self.ipv6 == Ipv6::Only && (behind_nat || self.upnp) {
            return Err("it has no IPv4, so nothing to translate: neither nat nor upnp".into());
        }
        if self.carrier != Nat::None && !behind_nat {
            return Err(
                "a carrier's NAT stands behind a home router's: give it a nat as well".into(),
            );
        }
        if self.upnp && !behind_nat {
            return Err("upnp maps ports of a NAT: give it a nat as well".into());
        }
        let least = if self.ipv6 == Ipv6::None {
            MTUS.0
        } else {
            MTUS.1
        };
        self.mtu
            .map_or(Ok(()), |mtu| check_mtu(mtu, least).map(drop))
    }
}

/// Properties of a link; an absent one comes from the `[default]` table, and is none (no delay, no
/// loss, no limit) if it is absent there too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Properties {
    /// Round trip in milliseconds; half of it each way.
    pub rtt_ms: Option<f64>,
    /// One-way delay in milliseconds, instead of half of `rtt_ms`.
    pub delay_ms: Option<f64>,
    /// Largest deviation of the one-way delay, in milliseconds.
    pub jitter_ms: Option<f64>,
    /// Probability of loss, 0 to 1, each way.
    pub loss: Option<f64>,
    /// Rate in Mbit/s, each way.
    pub mbit: Option<f64>,
    /// Longest queue before the rate limit, in milliseconds (100 if not given).
    pub queue_ms: Option<f64>,
    /// Largest packet in bytes.
    pub mtu: Option<u16>,
    /// Whether packets that are too large vanish without an ICMP message.
    pub black_hole: Option<bool>,
}

impl Properties {
    fn or(self, other: Properties) -> Properties {
        // A round trip given here overrides a one-way delay of the defaults, and the other way
        // round.
        let own = self.rtt_ms.is_some() || self.delay_ms.is_some();
        Properties {
            rtt_ms: if own { self.rtt_ms } else { other.rtt_ms },
            delay_ms: if own { self.delay_ms } else { other.delay_ms },
            jitter_ms: self.jitter_ms.or(other.jitter_ms),
            loss: self.loss.or(other.loss),
            mbit: self.mbit.or(other.mbit),
            queue_ms: self.queue_ms.or(other.queue_ms),
            mtu: self.mtu.or(other.mtu),
            black_hole: self.black_hole.or(other.black_hole),
        }
    }

    /// The shape of one direction; an error names the invalid property.
    pub fn shape(self) -> Result<Shape, String> {
        let delay = self
            .delay_ms
            .or(self.rtt_ms.map(|rtt| rtt / 2.0))
            .unwrap_or(0.0);
        let loss = self.loss.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&loss) {
            return Err(format!("loss {loss} is not between 0 and 1"));
        }
        let mbit = self.mbit.unwrap_or(0.0);
        if !(0.0..=1e6).contains(&mbit) {
            return Err(format!("mbit {mbit} is not between 0 and 1000000"));
        }
        Ok(Shape {
            delay: milliseconds("delay", delay)?,
            jitter: milliseconds("jitter", self.jitter_ms.unwrap_or(0.0))?,
            loss,
            bits_per_second: (mbit * 1e6) as u64,
            queue: milliseconds("queue", self.queue_ms.unwrap_or(DEFAULT_QUEUE_MS))?,
            mtu: self.mtu.map_or(Ok(0), |mtu| check_mtu(mtu, MTUS.0))?,
            black_hole: self.black_hole.unwrap_or(false),
        })
    }
}

fn milliseconds(what: &str, value: f64) -> Result<Duration, String> {
    if (0.0..=60_000.0).contains(&value) {
        Ok(Duration::from_secs_f64(value / 1e3))
    } else {
        Err(format!("{what} of {value} ms is not between 0 and 60000"))
    }
}

fn check_mtu(mtu: u16, least: u16) -> Result<u16, String> {
    if (least..=MTUS.2).contains(&mtu) {
        Ok(mtu)
    } else {
        Err(format!(
            "an MTU of {mtu} is not between {least} and {}",
            MTUS.2
        ))
    }
}

/// A link between two sites.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// One site.
    pub a: String,
    /// The other site.
    pub b: String,
    /// Both directions.
    #[serde(flatten)]
    pub both: Properties,
    /// From `b` to `a`, where it differs.
    #[serde(default)]
    pub back: Properties,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sites {
    /// Decides every loss, every jitter and every port a NAT chooses.
    #[serde(default)]
    pub seed: u64,
    /// Properties of the links that are not listed, and of what listed ones leave out.
    #[serde(default)]
    pub default: Properties,
    /// The sites.
    #[serde(default, rename = "site")]
    pub sites: Vec<Site>,
    /// The links.
    #[serde(default, rename = "link")]
    pub links: Vec<Link>,
}

impl Sites {
    /// Reads and checks a file.
    pub fn load(path: impl AsRef<Path>) -> Result<Sites, Error> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::Io(format!("read {}", path.display()), e))?;
        Sites::parse(&text)
    }

    /// Reads and checks the text of a file.
    pub fn parse(text: &str) -> Result<Sites, Error> {
        let sites: Sites = toml::from_str(text).map_err(|e| Error::Sites(e.to_string()))?;
        sites.check()?;
        Ok(sites)
    }

    /// Checks that names are usable and unique, and that links join known sites with valid
    /// properties.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |why: String| Err(Error::Sites(why));
        if self.sites.is_empty() || self.sites.len() > MAX_SITES {
            return fail(format!(
                "there must be 1 to {MAX_SITES} sites, not {}",
                self.sites.len()
            ));
        }
        let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
        for site in &self.sites {
            check_name(&site.name).map_err(Error::Sites)?;
            if !names.insert(site.name.as_str()) {
                return fail(format!("two sites are named {}", site.name));
            }
            site.check()
                .map_err(|why| Error::Sites(format!("site {}: {why}", site.name)))?;
            let of_site = site.host_names();
            if of_site.is_empty() || of_site.len() > MAX_HOSTS_PER_SITE {
                return fail(format!(
                    "site {} must have 1 to {MAX_HOSTS_PER_SITE} hosts",
                    site.name
                ));
            }
            for host in of_site {
                check_name(&host).map_err(Error::Sites)?;
                if hosts.contains(&host) {
                    return fail(format!("two hosts are named {host}"));
                }
                hosts.insert(host);
            }
        }
        let mut pairs = BTreeSet::new();
        for link in &self.links {
            for end in [&link.a, &link.b] {
                if !names.contains(end.as_str()) {
                    return fail(format!("a link names {end}, which is no site"));
                }
            }
            if link.a == link.b
                || !pairs.insert((
                    link.a.clone().min(link.b.clone()),
                    link.a.clone().max(link.b.clone()),
                ))
            {
                return fail(format!(
                    "the link {} – {} is given twice or joins a site to itself",
                    link.a, link.b
                ));
            }
        }
        for a in &self.sites {
            for b in &self.sites {
                self.shape(&a.name, &b.name)
                    .map_err(|why| Error::Sites(format!("link {} – {}: {why}", a.name, b.name)))?;
            }
        }
        Ok(())
    }

    /// The shape of the link from site `from` to site `to`.
    pub fn shape(&self, from: &str, to: &str) -> Result<Shape, String> {
        let listed = self.links.iter().find_map(|link| {
            if link.a == from && link.b == to {
                Some(link.both)
            } else if link.b == from && link.a == to {
                Some(link.back.or(link.both))
            } else {
                None
            }
        });
        let mut properties = listed.unwrap_or_default().or(self.default);
        let lines = self
            .sites
            .iter()
            .filter(|site| site.name == from || site.name == to)
            .filter_map(|site| site.mtu);
        properties.mtu = lines.chain(properties.mtu).min();
        properties.shape()
    }
}

/// Checks a name. Reason: it becomes part of namespace and file names.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let usable = (1..=24).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if usable {
        Ok(())
    } else {
        Err(format!(
            "the name {name:?} is not 1 to 24 of a-z, 0-9 and -"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_takes_what_it_leaves_out_from_the_default() {
        let sites = Sites::parse(
            "[default]\nrtt_ms = 40\nmbit = \
                100\n[[site]]\nname='a'\n[[site]]\nname='b'\nhosts=2\n[[site]]\nname='c'\n\
             [[link]]\na='a'\nb='b'\nrtt_ms=10\nback={mbit=5, delay_ms=30}\n",
        )
        .unwrap();
        let there = sites.shape("a", "b").unwrap();
        assert_eq!(
            (there.delay, there.bits_per_second),
            (Duration::from_millis(5), 100_000_000)
        );
        let back = sites.shape("b", "a").unwrap();
        assert_eq!(
            (back.delay, back.bits_per_second),
            (Duration::from_millis(30), 5_000_000)
        );
        assert_eq!(
            sites.shape("a", "c").unwrap().delay,
            Duration::from_millis(20)
        );
        assert_eq!(sites.sites[1].host_names(), ["b1", "b2"]);
    }

    #[test]
    fn the_smallest_mtu_on_the_way_counts() {
        let text = "[default]\nmtu=1492\n[[site]]\nname='a'\nmtu=1400\n[[site]]\nname='b'\n\
            [[site]]\nname='c'\nmtu=1280\n\
                    [[link]]\na='b'\nb='a'\nmtu=1300\n";
        let sites = Sites::parse(text).unwrap();
        let mtu = |a, b| sites.shape(a, b).unwrap().mtu;
        assert_eq!(
            [mtu("a", "b"), mtu("b", "a"), mtu("b", "b"), mtu("a", "c")],
            [1300, 1300, 1492, 1280]
        );
    }

    #[test]
    fn every_kind_of_nat_is_read_by_its_name() {
        for nat in Nat::ALL {
            let sites = Sites::parse(&format!("[[site]]\nname='a'\nnat='{}'", nat.name())).unwrap();
            assert_eq!(sites.sites[0].nat, nat);
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "1 to 250 sites"),
            ("[[site]]\nname='A b'", "A b"),
            ("[[site]]\nname='a'\n[[site]]\nname='a'", "two sites"),
            (
                "[[site]]\nname='a'\nhosts=['x']\n[[site]]\nname='b'\nhosts=['x']",
                "two hosts",
            ),
            ("[[site]]\nname='a'\nnat='cone'", "cone"),
            (
                "[[site]]\nname='a'\n[[link]]\na='a'\nb='z'",
                "z, which is no site",
            ),
            (
                "[[site]]\nname='a'\n[[site]]\nname='b'\n[[link]]\na='a'\nb='b'\nloss=2",
                "loss 2",
            ),
            (
                "[[site]]\nname='a'\n[[site]]\nname='b'\n[[link]]\na='a'\nb='b'\n[[link]]\na='b'\n\
                    b='a'",
                "given twice",
            ),
            (
                "[[site]]\nname='a'\nipv6='only'\nnat='full-cone'",
                "no IPv4",
            ),
            ("[[site]]\nname='a'\ncarrier='symmetric'", "home router"),
            ("[[site]]\nname='a'\nupnp=true", "give it a nat"),
            (
                "[[site]]\nname='a'\nipv6='dual'\nmtu=1000",
                "between 1280 and 1500",
            ),
            (
                "[default]\nmtu=9000\n[[site]]\nname='a'",
                "between 576 and 1500",
            ),
            ("[default]\nrtt_ms=-1\n[[site]]\nname='a'", "-0.5 ms"),
        ] {
            let error = Sites::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?} gave {error:?}");
        }
    }
}
