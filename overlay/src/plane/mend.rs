//! Keeps the TUN as it has to be: whoever deletes it, sets it down, renames it, changes its MTU, or
//! takes its addresses or their routes, finds it put back within some seconds. What is wanted is
//! kept here; what is there is read from the kernel whenever it says that something changed, and
//! every few seconds ([`super::roam`]).
//!
//! One log line says what was put back, one what cannot be; a program that makes the same change
//! again and again is named as such, and from then on answered more slowly and without a word.
//! Another change is said all the same. IPv6 is optional: where it is switched off its address is
//! left out, and put on when it comes back.

use super::{Error, Inner, Unproved, astray, core::lock, device};
use p2pvm_host::{
    device as host,
    links::{Link, Mark, links, set_alias},
};
use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// So many repairs within [`OFTEN`] are made at once; then one every [`SLOWLY`].
const AT_ONCE: usize = 5;
const OFTEN: Duration = Duration::from_secs(60);
const SLOWLY: Duration = Duration::from_secs(4);

/// What the device is to be, and what became of keeping it so.
pub(crate) struct Wanted {
    pub name: String,
    pub mtu: u16,
    /// The largest TSO packet, bytes.
    pub largest: usize,
    pub mark: Mark,
    pub addresses: Vec<(IpAddr, u8)>,
    /// The plane ends: the device is left alone.
    pub closed: bool,
    /// What cannot be put back, in words.
    pub faults: Vec<String>,
    /// Packets that leave elsewhere though all of the device is there: a rule or a longer route
    /// comes first.
    pub elsewhere: Vec<Unproved>,
    /// IPv6 is switched off: said once.
    without_v6: bool,
    /// When something was last put back.
    mended: VecDeque<Instant>,
    said: Said,
}

/// What was said lately of things that are put back, by their kinds. A kind is said the first times
/// within [`OFTEN`], then no more.
#[derive(Default)]
pub(super) struct Said(BTreeMap<String, VecDeque<Instant>>);

/// Whether something that was put back is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Worth {
    Nothing,
    /// It happened so often that the next ones are not said.
    Last,
    Line,
}

impl Said {
    /// Notes that these were put back, and whether that is to be said; each kind is said `times`
    /// times.
    pub fn worth(&mut self, mended: &[String], times: usize, now: Instant) -> Worth {
        self.0.retain(|_, at| {
            at.retain(|at| now.saturating_duration_since(*at) <= OFTEN);
            !at.is_empty()
        });
        let worth = mended.iter().map(|what| {
            let at = self.0.entry(kind(what).to_owned()).or_default();
            if at.len() >= times {
                return Worth::Nothing;
            }
            at.push_back(now);
            if at.len() == times && times > 1 {
                Worth::Last
            } else {
                Worth::Line
            }
        });
        worth.max().unwrap_or(Worth::Nothing)
    }
}

/// What kind of change the words tell of: names and numbers differ from time to time.
fn kind(what: &str) -> &str {
    let varies = ["it was renamed", "its MTU was"];
    varies
        .into_iter()
        .find(|kind| what.starts_with(kind))
        .unwrap_or(what)
}

impl Wanted {
    pub fn new(name: String, mtu: u16, largest: usize, mark: Mark) -> Self {
        Self {
            name,
            mtu,
            largest,
            mark,
            addresses: Vec::new(),
            closed: false,
            faults: Vec::new(),
            elsewhere: Vec::new(),
            without_v6: false,
            mended: VecDeque::new(),
            said: Said::default(),
        }
    }

    /// Whether repairs have been so many that the next has to wait.
    fn is_slowed(&mut self, now: Instant) -> bool {
        while self
            .mended
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) > OFTEN)
        {
            self.mended.pop_front();
        }
        self.mended.len() >= AT_ONCE
            && self
                .mended
                .back()
                .is_some_and(|at| now.saturating_duration_since(*at) < SLOWLY)
    }

    /// Says what was put back, and what could not be. A program that changes the device again and
    /// again is named as such once.
    fn tell(&mut self, mended: &[String], faults: Vec<String>, now: Instant) {
        let device = self.name.as_str();
        if !mended.is_empty() {
            self.mended.push_back(now);
            match self.said.worth(mended, AT_ONCE, now) {
                Worth::Line => tracing::warn!(
                    "the interface {device} is put back, something changed it: {}",
                    mended.join(", ")
                ),
                Worth::Last => tracing::warn!(
                    "something changes the interface {device} again and again: {}",
                    mended.join(", ")
                ),
                Worth::Nothing => {}
            }
        }
        if faults != self.faults {
            if faults.is_empty() {
                tracing::info!("the interface {device} is as it should be again");
            } else {
                tracing::warn!(
                    "the interface {device} cannot be put back: {}",
                    faults.join("; ")
                );
            }
            self.faults = faults;
        }
    }

    fn tell_elsewhere(&mut self, elsewhere: Vec<Unproved>) {
        for new in elsewhere.iter().filter(|new| !self.elsewhere.contains(new)) {
            tracing::warn!("{new}, and a rule or a longer route of somebody else leads them there");
        }
        if elsewhere.is_empty() && !self.elsewhere.is_empty() {
            tracing::info!("packets to this network leave by {} again", self.name);
        }
        self.elsewhere = elsewhere;
    }
}

/// What one look found and did.
#[derive(Default)]
struct Round {
    mended: Vec<String>,
    faults: Vec<String>,
    elsewhere: Vec<Unproved>,
}

impl Round {
    /// Notes what became of putting something back.
    fn note(&mut self, what: impl FnOnce() -> String, done: io::Result<()>) -> bool {
        match done {
            Ok(()) => self.mended.push(what()),
            Err(error) => self.faults.push(format!("{}, and {error}", what())),
        }
        self.faults.is_empty()
    }
}

/// Whether IPv6 is switched off for an interface, or altogether.
fn v6_is_off(device: &str) -> bool {
    // `conf/all` alone does not count: it is written through to each interface.
    let read = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"));
    match read {
        Ok(text) => text.trim() != "0",
        Err(_) => !fs::exists("/proc/sys/net/ipv6").unwrap_or(true),
    }
}

/// An address of the network of `address` that is not this host's: the gateway's, or the next.
fn other_of(address: &IpAddr, prefix: u8) -> Option<IpAddr> {
    let first = host::network(address, prefix);
    let nth = |n: u8| match first {
        IpAddr::V4(v4) => IpAddr::from((u32::from(v4) | u32::from(n)).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) | u128::from(n)).to_be_bytes()),
    };
    let width = if address.is_ipv4() { 32 } else { 128 };
    (prefix + 2 <= width).then(|| if nth(1) == *address { nth(2) } else { nth(1) })
}

/// The address that stands for the network of `address` and that no host holds.
pub(super) fn gateway(address: &IpAddr, prefix: u8) -> Option<IpAddr> {
    other_of(address, prefix)
}

impl Inner {
    /// Compares the device with what it is to be and puts back what differs; what that was, in
    /// words. Must be called in the plane's network namespace.
    pub fn mend_device(&self, now: Instant) -> Vec<String> {
        let mut wanted = lock(&self.device_wanted);
        if wanted.closed || wanted.is_slowed(now) {
            return Vec::new();
        }
        let mut round = Round::default();
        self.look_at(&mut wanted, &mut round);
        wanted.tell(&round.mended, round.faults, now);
        wanted.tell_elsewhere(round.elsewhere);
        round.mended
    }

    fn look_at(&self, wanted: &mut Wanted, round: &mut Round) {
        let Some(anew) = self.attach_again(wanted, round) else {
            return;
        };
        let (Ok(name), Ok(all)) = (self.tun.name(), links()) else {
            return;
        };
        // It may be renamed at this moment: the next look finds it.
        let Some(link) = all.iter().find(|link| link.name == name) else {
            return;
        };
        if anew {
            self.finish(wanted, link, &mut Round::default(), true);
            // What is missing of a device that has just been made needs no words.
            let mut rest = Round::default();
            self.finish_addresses(wanted, link.index, &[], &mut rest);
            round.faults.append(&mut rest.faults);
            round.elsewhere.append(&mut rest.elsewhere);
        } else {
            self.finish(wanted, link, round, false);
            self.finish_addresses(wanted, link.index, &link.addresses, round);
        }
    }

    /// Makes the device anew where it was deleted, or moved to where it is of no use; whether that
    /// was needed, none: it cannot be.
    fn attach_again(&self, wanted: &Wanted, round: &mut Round) -> Option<bool> {
        let here = |name: &String| links().map(|links| links.iter().any(|link| link.name == *name));
        let what = match self.tun.name().map(|name| here(&name)) {
            Ok(Ok(true)) => return Some(false),
            Ok(Err(_)) => return None,
            Err(_) => "it was deleted",
            Ok(Ok(false)) => {
                let what = "it was moved into another network namespace";
                match astray::delete_elsewhere(&self.tun) {
                    Ok(true) => what,
                    Ok(false) => return None,
                    Err(error) => {
                        round.note(|| what.into(), Err(error));
                        return None;
                    }
                }
            }
        };
        round
            .note(
                || what.into(),
                device::attach(&self.tun, &wanted.name, self.joins_datagrams),
            )
            .then_some(true)
    }

    /// Name, MTU, mark, carrier, up.
    fn finish(&self, wanted: &Wanted, link: &Link, round: &mut Round, anew: bool) {
        let index = link.index;
        if link.name != wanted.name {
            round.note(
                || format!("it was renamed {}", link.name),
                host::set_name(index, &wanted.name),
            );
        }
        if link.mtu != u32::from(wanted.mtu) {
            round.note(
                || format!("its MTU was {}", link.mtu),
                host::set_mtu(index, wanted.mtu.into()),
            );
        }
        let mark = link.mark();
        let is_ours = |mark: &Mark| {
            mark.network == wanted.mark.network && mark.link_port == wanted.mark.link_port
        };
        if mark
            .as_ref()
            .is_some_and(|mark| *mark != wanted.mark && is_ours(mark))
        {
            // What the mark is to say has changed, and nobody took it away.
            let _ = set_alias(index, &wanted.mark.to_string());
        } else if mark.as_ref() != Some(&wanted.mark) {
            round.note(
                || "its mark was gone".into(),
                set_alias(index, &wanted.mark.to_string()),
            );
        }
        if anew {
            let _ = device::limit_packets(index, wanted.largest);
        }
        if !link.up {
            round.note(|| "it was down".into(), host::set_up(index));
        } else if !link.carrier {
            round.note(
                || "it had no carrier".into(),
                device::set_carrier(&self.tun),
            );
        }
    }

    /// Addresses, and the routes that come with them.
    fn finish_addresses(
        &self,
        wanted: &mut Wanted,
        index: u32,
        there: &[(IpAddr, u8)],
        round: &mut Round,
    ) {
        for (address, prefix) in wanted.addresses.clone() {
            if address.is_ipv6() && self.is_without_v6(wanted) {
                continue;
            }
            if !there.contains(&(address, prefix)) {
                let added = self.add_address(&address, prefix);
                if !round.note(|| format!("its address {address} was gone"), added) {
                    continue;
                }
            }
            let Some(other) = other_of(&address, prefix) else {
                continue;
            };
            let leads_here = || host::way_to(&other).is_ok_and(|by| by == Some(index));
            if leads_here() {
                continue;
            }
            let network = host::network(&address, prefix);
            match host::add_connected_route(index, &address, prefix) {
                Ok(()) => round
                    .mended
                    .push(format!("its route to {network}/{prefix} was gone")),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // The same network by another interface, though none stands in it: somebody
                    // replaced the route.
                    if address.is_ipv4()
                        && !leads_here()
                        && !others_stand_in(index, &network, prefix)
                    {
                        match host::put_connected_route_first(index, &address, prefix) {
                            // Ours is there: what comes first stands in a rule or another table.
                            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                            first => {
                                round.note(
                                    || {
                                        format!(
                                            "its route to {network}/{prefix} was \
                                    replaced by another"
                                        )
                                    },
                                    first,
                                );
                            }
                        }
                    }
                }
                Err(error) => round.faults.push(format!(
                    "its route to {network}/{prefix} is gone, and {error}"
                )),
            }
            if !leads_here() {
                let (device, through) = (wanted.name.clone(), way(&other));
                round.elsewhere.push(Unproved::Elsewhere {
                    device,
                    addr: other,
                    through,
                });
            }
        }
    }

    fn add_address(&self, address: &IpAddr, prefix: u8) -> io::Result<()> {
        let added = match address {
            IpAddr::V4(v4) => self.tun.add_address_v4(*v4, prefix),
            IpAddr::V6(v6) => self.tun.add_address_v6(*v6, prefix),
        };
        added.or_else(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                Ok(())
            } else {
                Err(error)
            }
        })
    }

    /// Whether this machine's IPv6 is switched off; says so when that changes.
    fn is_without_v6(&self, wanted: &mut Wanted) -> bool {
        let off = v6_is_off(&wanted.name);
        if off != wanted.without_v6 {
            wanted.without_v6 = off;
            let device = wanted.name.as_str();
            if off {
                tracing::info!(
                    "IPv6 is switched off on this machine: {device} has its IPv4 address alone"
                );
            } else {
                tracing::info!("IPv6 is switched on: {device} gets its IPv6 address");
            }
        }
        off
    }

    /// Says which addresses the device is to have, and puts them on. Must be called in the plane's
    /// network namespace.
    pub fn set_host_addresses(
        &self,
        v4: Option<(Ipv4Addr, u8)>,
        v6: Option<(Ipv6Addr, u8)>,
    ) -> Result<(), Error> {
        let new: Vec<(IpAddr, u8)> = v4
            .map(|(a, p)| (a.into(), p))
            .into_iter()
            .chain(v6.map(|(a, p)| (a.into(), p)))
            .collect();
        let mut wanted = lock(&self.device_wanted);
        let old = std::mem::replace(&mut wanted.addresses, new.clone());
        for (addr, _) in old.iter().filter(|a| !new.contains(a)) {
            let _ = self.tun.remove_address(*addr);
        }
        self.hosts.store(std::sync::Arc::new(new.clone()));
        self.underlay.set_device(&wanted.name, &new);
        let mut failed = None;
        for (addr, prefix) in new.iter().filter(|a| !old.contains(a)) {
            if addr.is_ipv6() && self.is_without_v6(&mut wanted) {
                continue;
            }
            if let Err(cause) = self.add_address(addr, *prefix) {
                // IPv4 alone will do; the next look tries again and says what is wrong.
                if addr.is_ipv4() || v4.is_none() {
                    failed = Some(Error::Address {
                        device: wanted.name.clone(),
                        addr: *addr,
                        cause,
                    });
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// What cannot be put back of the device and of guests' interfaces.
    pub fn device_faults(&self) -> Vec<String> {
        let wanted = lock(&self.device_wanted);
        let device = wanted
            .faults
            .iter()
            .map(|fault| format!("the interface {} cannot be put back: {fault}", wanted.name));
        device.chain(self.port_faults()).collect()
    }

    /// The ways of packets to the network that somebody else's rules or routes lead past the
    /// device.
    pub fn ways_elsewhere(&self) -> Vec<Unproved> {
        lock(&self.device_wanted).elsewhere.clone()
    }

    /// Writes into the device's mark which member's address another network of this machine holds.
    pub fn set_misses(&self, misses: Option<IpAddr>) {
        let before = std::mem::replace(&mut lock(&self.device_wanted).mark.misses, misses);
        if before != misses {
            self.ask_host(None);
        }
    }

    /// Writes the control plane's port into the device's mark.
    pub fn set_control_port(&self, port: u16) {
        lock(&self.device_wanted).mark.control_port = port;
        self.ask_host(None);
    }
}

/// Whether another interface has an address in this network, so that its route there is its own.
fn others_stand_in(index: u32, network: &IpAddr, prefix: u8) -> bool {
    let stands = |link: &Link| {
        link.index != index
            && link
                .addresses
                .iter()
                .any(|(ip, _)| host::network(ip, prefix) == *network)
    };
    links().is_ok_and(|links| links.iter().any(stands))
}

/// By which interface a packet to `ip` leaves, in words.
pub(super) fn way(ip: &IpAddr) -> String {
    match host::way_to(ip) {
        Ok(Some(index)) => nix::net::if_::if_indextoname(index).map_or_else(
            |_| format!("interface {index}"),
            |n| n.to_string_lossy().into(),
        ),
        Ok(None) => "no interface".into(),
        Err(error) => format!("no interface: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_address_stands_for_the_network_and_a_network_of_one_has_none() {
        for (address, prefix, other) in [
            ("10.77.0.3", 16, Some("10.77.0.1")),
            ("10.77.0.1", 16, Some("10.77.0.2")),
            ("10.77.0.2", 31, None),
            ("10.77.0.2", 32, None),
            ("fd77::9", 48, Some("fd77::1")),
            ("fd77::9", 127, None),
        ] {
            let other: Option<IpAddr> = other.map(|text| text.parse().unwrap());
            assert_eq!(
                other_of(&address.parse().unwrap(), prefix),
                other,
                "{address}/{prefix}"
            );
        }
    }

    #[test]
    fn a_change_of_another_kind_is_said_also_after_one_that_is_made_again_and_again() {
        let (mut said, now) = (Said::default(), Instant::now());
        let mut worth = |what: &str, after| {
            said.worth(
                &[what.to_owned()],
                AT_ONCE,
                now + Duration::from_secs(after),
            )
        };
        let down: Vec<Worth> = (0..8).map(|at| worth("it was down", at)).collect();
        assert_eq!(down[..AT_ONCE - 1], [Worth::Line; AT_ONCE - 1]);
        assert_eq!(
            down[AT_ONCE - 1..],
            [Worth::Last, Worth::Nothing, Worth::Nothing, Worth::Nothing]
        );
        assert_eq!(
            [worth("its MTU was 1400", 9), worth("it was renamed x", 9)],
            [Worth::Line; 2]
        );
        let renamed: Vec<Worth> = (0..6)
            .map(|n| worth(&format!("it was renamed x{n}"), 10))
            .collect();
        assert_eq!(
            renamed.last(),
            Some(&Worth::Nothing),
            "another name is no other kind"
        );
        assert_eq!(worth("it was down", 100), Worth::Line);
    }

    #[test]
    fn the_first_repairs_are_made_at_once_and_many_more_slowly() {
        let mark = Mark {
            network: "n".into(),
            link_port: 1,
            control_port: 2,
            misses: None,
        };
        let (mut wanted, start) = (
            Wanted::new("p2pvm0".into(), 1340, 65_000, mark),
            Instant::now(),
        );
        for n in 0..AT_ONCE {
            let now = start + Duration::from_millis(100 * n as u64);
            assert!(!wanted.is_slowed(now));
            wanted.tell(&["it was down".into()], Vec::new(), now);
        }
        let last = start + Duration::from_millis(100 * (AT_ONCE as u64 - 1));
        assert!(
            wanted.is_slowed(last + Duration::from_millis(100)) && !wanted.is_slowed(last + SLOWLY)
        );
        assert!(!wanted.is_slowed(last + OFTEN + Duration::from_secs(1)));
        assert!(wanted.mended.is_empty());
    }
}
