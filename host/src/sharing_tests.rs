//! Two networks that see each other's tables only, look by look.

use super::*;
use crate::plan::{Step, plan};

const LAN: &str = "192.168.50.0/24";

fn net(text: &str) -> Net {
    text.parse().unwrap()
}

/// A network: what it wants, and what its table holds.
struct Network {
    wanted: NetworkNeeds,
    routes: BTreeMap<Net, bool>,
    throws: BTreeSet<Net>,
}

impl Network {
    fn new(device: &str, accepted: &[&str]) -> Self {
        let accepted = accepted.iter().map(|text| net(text)).collect();
        let wanted = NetworkNeeds {
            device: device.into(),
            network: device.into(),
            accepted,
            ..NetworkNeeds::default()
        };
        Self {
            wanted,
            routes: BTreeMap::new(),
            throws: BTreeSet::new(),
        }
    }

    fn held(&self) -> impl Iterator<Item = NeighbourRoute> {
        let of = |net: &Net, holds| NeighbourRoute {
            device: self.wanted.device.clone(),
            net: *net,
            holds,
        };
        let holds = |silent| {
            if silent {
                HoldState::Silent
            } else {
                HoldState::Answering
            }
        };
        let routes = self
            .routes
            .iter()
            .map(move |(net, silent)| of(net, holds(*silent)));
        routes.chain(self.throws.iter().map(move |net| of(net, HoldState::Away)))
    }

    fn seen(&self, other: &Self) -> Observed {
        Observed {
            device: Some(7),
            routes: self.routes.keys().copied().collect(),
            silent: self
                .routes
                .iter()
                .filter(|(_, silent)| **silent)
                .map(|(net, _)| *net)
                .collect(),
            throws: self.throws.clone(),
            held: other.held().collect(),
            ..Observed::default()
        }
    }

    fn look(&mut self, other: &Self) -> usize {
        let mut count = 0;
        for step in plan(&self.wanted, &self.seen(other)) {
            // As the kernel: of a route and an exception to one block the later replaces the
            // former.
            match step {
                Step::Route(net) => {
                    self.throws.remove(&net);
                    self.routes.insert(net, self.wanted.silent.contains(&net));
                }
                Step::Throw(net) => {
                    self.routes.remove(&net);
                    self.throws.insert(net);
                }
                Step::Unroute(net) => drop(self.routes.remove(&net)),
                Step::Unthrow(net) => drop(self.throws.remove(&net)),
                _ => continue,
            }
            count += 1;
        }
        count
    }

    fn silence(&mut self, silent: bool) {
        self.wanted.silent = if silent {
            self.wanted.accepted.clone()
        } else {
            BTreeSet::new()
        };
    }
}

fn settle(a: &mut Network, b: &mut Network) {
    for _ in 0..6 {
        if a.look(b) + b.look(a) == 0 {
            return;
        }
    }
    panic!("they do not come to rest: {:?} {:?}", a.routes, b.routes);
}

/// Which of the two leads to the LAN.
fn leads(a: &Network, b: &Network) -> (bool, bool) {
    (
        a.routes.contains_key(&net(LAN)),
        b.routes.contains_key(&net(LAN)),
    )
}

#[test]
fn the_network_whose_router_answers_leads_to_a_lan_that_two_accept() {
    let (mut a, mut b) = (
        Network::new("p2pvm0", &[LAN]),
        Network::new("p2pvm1", &[LAN]),
    );
    settle(&mut a, &mut b);
    assert_eq!(leads(&a, &b), (true, false), "who was first holds it");
    a.silence(true);
    settle(&mut a, &mut b);
    assert_eq!(
        leads(&a, &b),
        (false, true),
        "the dead one does not hide the living one"
    );
    a.silence(false);
    settle(&mut a, &mut b);
    assert_eq!(
        leads(&a, &b),
        (false, true),
        "one that comes back cuts nobody's connections"
    );
    a.silence(true);
    b.silence(true);
    settle(&mut a, &mut b);
    assert!(
        leads(&a, &b) != (false, false),
        "with both dead the packets still go into a network of theirs"
    );
    b.silence(false);
    settle(&mut a, &mut b);
    assert_eq!(leads(&a, &b), (false, true));
    b.wanted.accepted.clear();
    settle(&mut a, &mut b);
    assert_eq!(
        leads(&a, &b),
        (true, false),
        "one that accepts it no more leaves it to the other"
    );
    assert!(b.throws.is_empty());
}

#[test]
fn two_networks_that_begin_in_one_moment_agree_who_leads() {
    let (mut a, mut b) = (
        Network::new("p2pvm0", &[LAN]),
        Network::new("p2pvm1", &[LAN]),
    );
    a.routes.insert(net(LAN), false);
    b.routes.insert(net(LAN), false);
    let (seen_a, seen_b) = (a.seen(&b), b.seen(&a));
    assert_eq!(elsewhere(&a.wanted, &seen_a), BTreeMap::new());
    assert_eq!(
        elsewhere(&b.wanted, &seen_b),
        BTreeMap::from([(net(LAN), "p2pvm0".to_owned())])
    );
    settle(&mut a, &mut b);
    assert_eq!(leads(&a, &b), (true, false));
}

#[test]
fn part_of_a_lan_goes_to_the_network_accepting_that_part() {
    let (mut a, mut b) = (
        Network::new("p2pvm0", &["192.168.0.0/16"]),
        Network::new("p2pvm1", &[LAN]),
    );
    settle(&mut a, &mut b);
    assert_eq!(leads(&a, &b), (false, true));
    assert!(a.routes.contains_key(&net("192.168.0.0/16")) && a.throws.contains(&net(LAN)));
    let [found] = shared(&a.wanted, &a.seen(&b)).try_into().unwrap();
    assert_eq!(
        (found.net, found.within, found.is_here),
        (net(LAN), Some(net("192.168.0.0/16")), false)
    );
    b.silence(true);
    settle(&mut a, &mut b);
    assert!(
        a.throws.is_empty(),
        "while its router is silent the larger one leads there"
    );
}

#[test]
fn both_networks_are_told_which_of_them_leads_and_why() {
    let (mut a, mut b) = (
        Network::new("p2pvm0", &[LAN]),
        Network::new("p2pvm1", &[LAN]),
    );
    a.silence(true);
    settle(&mut a, &mut b);
    let [here] = shared(&b.wanted, &b.seen(&a)).try_into().unwrap();
    let [there] = shared(&a.wanted, &a.seen(&b)).try_into().unwrap();
    assert!(
        here.is_here && here.device == "p2pvm0" && here.other == HoldState::Away && here.answers
    );
    assert!(
        !there.is_here
            && there.device == "p2pvm1"
            && there.other == HoldState::Answering
            && !there.answers
    );
    b.wanted.accepted.clear();
    settle(&mut a, &mut b);
    assert_eq!(
        shared(&a.wanted, &a.seen(&b)),
        [],
        "one alone shares with nobody"
    );
}
