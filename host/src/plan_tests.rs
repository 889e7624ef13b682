//! Several networks on a modelled machine: whatever happens in between, each gets what it wants,
//! and the last leaves nothing.

use super::*;
use crate::{
    outbound::CarriedVpn,
    passage::{FirewallKind, Traffic},
};
use proptest::{prelude::*, test_runner::TestCaseError};

/// The machine: what the kernel holds, and what each network's journal says.
#[derive(Clone, Debug, Default, PartialEq)]
struct World {
    rules: Vec<PlacedRule>,
    base: u32,
    local: BTreeSet<Net>,
    ip_forward: bool,
    forwarding: BTreeMap<String, ForwardingState>,
    /// As all but p2pvm have left it.
    others: BTreeMap<String, bool>,
    networks: BTreeMap<String, Own>,
    /// The network that carries a VPN which takes all.
    carrier: Option<String>,
}

fn by_others(on: bool) -> ForwardingState {
    if on {
        ForwardingState::ForOthers
    } else {
        ForwardingState::No
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Own {
    wanted: NetworkNeeds,
    routes: BTreeSet<Net>,
    throws: BTreeSet<Net>,
    table: TableState,
    switched: BTreeSet<String>,
    passages: BTreeSet<Passage>,
    stale: BTreeSet<Passage>,
}

const LANS: [&str; 2] = ["lan0", "lan1"];

fn vpn() -> CarriedVpn {
    CarriedVpn {
        by: "wg0".into(),
        server: [10, 1, 0, 9].into(),
        is_passed: true,
    }
}

fn passages() -> BTreeSet<Passage> {
    let of = |way| Passage {
        by: FirewallKind::Nft,
        family: "ip".into(),
        chain: "FORWARD".into(),
        way,
    };
    BTreeSet::from([of(Traffic::In), of(Traffic::From("lan0".into()))])
}

impl World {
    fn join(&mut self, n: u16) {
        let wanted = NetworkNeeds {
            device: format!("p2pvm{n}"),
            network: format!("network {n}"),
            link_port: 4002 + n * 10,
            control_port: 4001 + n * 10,
            overlay: Some(format!("10.{}.0.0/16", n + 1).parse().unwrap()),
            ..NetworkNeeds::default()
        };
        self.forwarding
            .insert(wanted.device.clone(), by_others(self.ip_forward));
        self.others.insert(wanted.device.clone(), self.ip_forward);
        self.networks.insert(
            wanted.device.clone(),
            Own {
                wanted,
                ..Own::default()
            },
        );
    }

    fn observe(&self, device: &str) -> Observed {
        let own = &self.networks[device];
        let lans: BTreeSet<String> = own
            .wanted
            .offered
            .iter()
            .map(|net| LANS[usize::from(net.addr().octets()[2] % 2)].to_owned())
            .collect();
        let others = self
            .networks
            .iter()
            .filter(|(name, own)| *name != device && own.table != TableState::Absent);
        Observed {
            device: Some(7),
            marks: self
                .networks
                .iter()
                .map(|(name, own)| (name.clone(), own.wanted.mark()))
                .collect(),
            rules: self.rules.clone(),
            rules_base: self.base,
            carried: self
                .carrier
                .as_deref()
                .filter(|name| *name == device)
                .map(|_| vpn()),
            routes: own.routes.clone(),
            silent: BTreeSet::new(),
            held: BTreeSet::new(),
            throws: own.throws.clone(),
            local: self.local.clone(),
            forwarding: self.forwarding.clone(),
            lans,
            switched: own.switched.clone(),
            switched_by_others: others
                .flat_map(|(_, own)| own.switched.iter().cloned())
                .collect(),
            table: own.table.clone(),
            passages: if own.wanted.offered.is_empty() {
                BTreeSet::new()
            } else {
                passages()
            },
            passages_there: own.passages.clone(),
            passages_stale: own.stale.clone(),
        }
    }

    /// One look of one network's keeper.
    fn look(&mut self, device: &str) -> Vec<Step> {
        let steps = plan(&self.networks[device].wanted.clone(), &self.observe(device));
        for step in &steps {
            let own = self.networks.get_mut(device).unwrap();
            match step.clone() {
                Step::Close(passage) => {
                    let _ = (own.passages.remove(&passage), own.stale.remove(&passage));
                }
                Step::Open(passage) => {
                    let _ = (own.stale.remove(&passage), own.passages.insert(passage));
                }
                Step::Route(net) => drop(own.routes.insert(net)),
                Step::Unroute(net) => drop(own.routes.remove(&net)),
                Step::Throw(net) => drop(own.throws.insert(net)),
                Step::Unthrow(net) => drop(own.throws.remove(&net)),
                Step::Rule(rule) => self.rules.push(rule),
                Step::Unrule(rule) => {
                    let at = self
                        .rules
                        .iter()
                        .position(|r| *r == rule)
                        .expect("only what is there is removed");
                    self.rules.remove(at);
                }
                Step::Table(text) => own.table = TableState::Made(text),
                Step::DropTable => own.table = TableState::Absent,
                Step::Switch { interface, change } => {
                    own.switched.insert(interface.clone());
                    if change {
                        assert!(
                            own.guards(&interface) || interface == device,
                            "the guard is there before an interface forwards"
                        );
                        self.forwarding.insert(interface, ForwardingState::ForUs);
                    }
                }
                Step::Restore { interface, change } => {
                    own.switched.remove(&interface);
                    if change {
                        let guarded = own.guards(&interface) || own.table == TableState::Absent;
                        assert!(
                            guarded || interface == device,
                            "the guard, if nobody flushed it, stays until it does not"
                        );
                        self.forwarding.insert(interface, ForwardingState::No);
                    }
                }
            }
        }
        steps
    }

    fn settle(&mut self) {
        let names: Vec<String> = self.networks.keys().cloned().collect();
        for _ in 0..4 {
            if names
                .iter()
                .map(|device| self.look(device).len())
                .sum::<usize>()
                == 0
            {
                return;
            }
        }
        let left: Vec<_> = names.iter().map(|device| self.look(device)).collect();
        panic!("the keepers do not come to rest: {left:?}\n{self:?}");
    }

    /// The network's daemon ends: everything is undone, then the interface goes.
    fn leave(&mut self, device: &str) {
        let own = self.networks.get_mut(device).unwrap();
        own.wanted = own.wanted.nothing();
        let table = own.wanted.routing_table();
        self.look(device);
        let marks = self.observe(device).marks;
        for step in rules_without(table, &marks, &self.rules.clone()) {
            match step {
                Step::Unrule(rule) => {
                    let at = self.rules.iter().position(|r| *r == rule).unwrap();
                    self.rules.remove(at);
                }
                Step::Rule(rule) => self.rules.push(rule),
                other => panic!("{other:?}"),
            }
        }
        let gone = self.networks.remove(device).unwrap();
        assert!(
            gone.switched.is_empty()
                && gone.table == TableState::Absent
                && gone.passages.is_empty()
                && gone.routes.is_empty()
                && gone.throws.is_empty()
        );
        self.forwarding.remove(device);
        self.others.remove(device);
    }

    /// As the kernel does it: what is so already is not touched.
    fn set_ip_forward(&mut self, on: bool) {
        if self.ip_forward != on {
            self.ip_forward = on;
            self.forwarding
                .values_mut()
                .for_each(|forwards| *forwards = by_others(on));
            self.others.values_mut().for_each(|others| *others = on);
        }
    }

    fn set_forwarding(&mut self, lan: &str, on: bool) {
        self.forwarding.insert(lan.to_owned(), by_others(on));
        self.others.insert(lan.to_owned(), on);
    }
}

impl Own {
    /// Whether its table lets nothing of others through an interface.
    fn guards(&self, interface: &str) -> bool {
        let is_guard = |line: &str| {
            line.trim().starts_with("iifname {")
                && line.contains(&format!("\"{interface}\""))
                && line.ends_with("drop")
        };
        matches!(&self.table, TableState::Made(text) if text.lines().any(is_guard))
    }
}

#[derive(Clone, Debug)]
enum Event {
    Accept(u16, BTreeSet<u8>),
    Offer(u16, BTreeSet<u8>),
    Global(bool),
    Leave(u16),
    Join(u16),
    FlushRules,
    FlushTables,
    /// Somebody's saved rules, beside those that are there; or after they went.
    LoadAgain,
    Revive(u16),
    Forward(usize, bool),
    DoubleRule(usize),
    /// wg-quick comes or goes.
    Base(u32),
    Local(BTreeSet<u8>),
    /// A VPN over one of the networks comes or goes.
    Carry(Option<u16>),
}

fn event() -> impl Strategy<Value = Event> {
    let nets = || prop::collection::btree_set(0u8..6, 0..4);
    prop_oneof![
        4 => (0u16..3, nets()).prop_map(|(n, nets)| Event::Accept(n, nets)),
        4 => (0u16..3, nets()).prop_map(|(n, nets)| Event::Offer(n, nets)),
        2 => any::<bool>().prop_map(Event::Global),
        1 => (0u16..3).prop_map(Event::Leave),
        2 => (0u16..3).prop_map(Event::Join),
        1 => Just(Event::FlushRules),
        1 => Just(Event::FlushTables),
        1 => Just(Event::LoadAgain),
        1 => (0u16..2).prop_map(Event::Revive),
        3 => (0usize..2, any::<bool>()).prop_map(|(lan, on)| Event::Forward(lan, on)),
        1 => (0usize..8).prop_map(Event::DoubleRule),
        1 => prop_oneof![Just(5300u32), Just(5289)].prop_map(Event::Base),
        1 => prop::collection::btree_set(0u8..6, 0..2).prop_map(Event::Local),
        1 => prop::option::of(0u16..3).prop_map(Event::Carry),
    ]
}

fn nets(thirds: &BTreeSet<u8>) -> BTreeSet<Net> {
    thirds
        .iter()
        .map(|third| format!("192.168.{third}.0/24").parse().unwrap())
        .collect()
}

impl World {
    fn apply(&mut self, event: Event) {
        let device = |n: &u16| format!("p2pvm{n}");
        match event {
            Event::Join(n) if !self.networks.contains_key(&device(&n)) => self.join(n),
            Event::Leave(n) if self.networks.contains_key(&device(&n)) => self.leave(&device(&n)),
            Event::Accept(n, thirds) => {
                if let Some(own) = self.networks.get_mut(&device(&n)) {
                    own.wanted.accepted = nets(&thirds);
                }
            }
            Event::Offer(n, thirds) => {
                if let Some(own) = self.networks.get_mut(&device(&n)) {
                    own.wanted.offered = nets(&thirds);
                    own.wanted.open_firewalls = true;
                }
            }
            Event::Global(on) => self.set_ip_forward(on),
            Event::FlushRules => self.rules.clear(),
            Event::Base(base) => self.base = base,
            Event::Carry(n) => self.carrier = n.as_ref().map(device),
            Event::Local(thirds) => {
                // A whole block of the others', and a part of one.
                self.local = nets(&thirds);
                self.local.extend(
                    thirds
                        .iter()
                        .map(|third| Net::new([192, 168, third ^ 1, 128].into(), 25)),
                );
            }
            Event::FlushTables => self.networks.values_mut().for_each(|own| {
                own.table = TableState::Absent;
                own.passages.clear();
                own.stale.clear();
            }),
            Event::LoadAgain => self
                .networks
                .values_mut()
                .for_each(|own| own.stale = own.passages.clone()),
            Event::Revive(n) => {
                if let Some(own) = self.networks.get_mut(&device(&n)) {
                    own.passages = passages();
                }
            }
            Event::Forward(lan, on) => self.set_forwarding(LANS[lan], on),
            Event::DoubleRule(at) => {
                if let Some(rule) = self.rules.get(at).copied() {
                    self.rules.push(rule);
                }
            }
            _ => {}
        }
    }

    /// What holds after every look.
    fn check(&self) -> Result<(), TestCaseError> {
        let active = self
            .networks
            .values()
            .any(|own| !own.wanted.accepted.is_empty());
        let carrier = self
            .carrier
            .as_ref()
            .and_then(|name| self.networks.get(name))
            .map(|own| &own.wanted);
        prop_assert_eq!(self.rules.is_empty(), !active && carrier.is_none());
        let past: BTreeSet<Rule> = carrier
            .into_iter()
            .flat_map(|wanted| {
                by_port(&wanted.mark())
                    .chain([Sockets::Marked])
                    .map(Rule::Past)
            })
            .collect();
        let is_past = |rule: &Rule| matches!(rule, Rule::Past(_));
        prop_assert_eq!(
            self.rules
                .iter()
                .map(|placed| placed.rule)
                .filter(is_past)
                .collect::<BTreeSet<_>>(),
            past
        );
        for own in self.networks.values() {
            self.check_network(own, active)?;
        }
        Ok(())
    }

    fn check_network(&self, own: &Own, active: bool) -> Result<(), TestCaseError> {
        prop_assert!(own.stale.is_empty());
        prop_assert!(!own.wanted.offered.is_empty() || own.passages.is_empty());
        let reached: BTreeSet<Net> = own
            .wanted
            .accepted
            .iter()
            .filter(|net| !self.local.contains(net))
            .copied()
            .collect();
        prop_assert_eq!(&own.routes, &reached);
        let covers = |part: &Net| reached.iter().any(|net| net.covers(part));
        let excepted = |part: &Net| own.throws.contains(part) == covers(part);
        let all_excepted = self.local.iter().all(excepted);
        prop_assert!(all_excepted);
        if active {
            let there = |rule| {
                self.rules.contains(&PlacedRule {
                    base: self.base,
                    rule,
                })
            };
            prop_assert!(
                there(Rule::Around(Sockets::Udp(own.wanted.link_port)))
                    && there(Rule::Around(Sockets::Tcp(own.wanted.control_port)))
            );
        }
        if !own.wanted.offered.is_empty() {
            let lans = self.observe(&own.wanted.device).lans;
            prop_assert!(
                lans.iter()
                    .chain([&own.wanted.device])
                    .all(|i| self.forwarding[i] != ForwardingState::No)
            );
            prop_assert!(
                lans.iter().all(|lan| own.guards(lan) != self.others[lan]),
                "guarded where it is for us alone"
            );
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn networks_on_one_machine_work_and_leave_what_they_found(
        events in prop::collection::vec((event(), any::<bool>()), 0..24)
    ) {
        let mut world = World { base: 5300, ..World::default() };
        LANS.iter().for_each(|lan| world.set_forwarding(lan, false));
        (0..2).for_each(|n| world.join(n));
        for (event, looked) in events {
            world.apply(event);
            for lan in LANS {
                prop_assert!(
                    !world.others[lan] || world.forwarding[lan] == ForwardingState::ForOthers,
                    "{lan} is off where others have it on"
                );
            }
            // Much may happen between two looks.
            if !looked {
                continue;
            }
            world.settle();
            world.check()?;
        }
        for device in world.networks.keys().cloned().collect::<Vec<_>>() {
            world.leave(&device);
            world.settle();
        }
        prop_assert!(world.rules.is_empty());
        for lan in LANS {
            prop_assert_eq!(world.forwarding[lan], by_others(world.others[lan]), "{} is as all \
                but p2pvm have left it", lan);
        }
    }
}

fn offering(ip_forward: bool) -> (NetworkNeeds, Observed) {
    let wanted = NetworkNeeds {
        device: "p2pvm0".into(),
        overlay: Some("10.9.0.0/16".parse().unwrap()),
        offered: BTreeSet::from(["192.168.7.0/24".parse().unwrap()]),
        ..NetworkNeeds::default()
    };
    let seen = Observed {
        lans: BTreeSet::from(["lan0".to_owned()]),
        forwarding: ["lan0", "p2pvm0"]
            .map(|i| (i.to_owned(), by_others(ip_forward)))
            .into(),
        ..Observed::default()
    };
    (wanted, seen)
}

fn text(steps: &[Step]) -> String {
    steps
        .iter()
        .find_map(|step| {
            if let Step::Table(text) = step {
                Some(text.clone())
            } else {
                None
            }
        })
        .expect("a table")
}

#[test]
fn a_lan_is_guarded_only_while_it_forwards_because_of_us() {
    let guard = "iifname { \"lan0\" } oifname != { \"p2pvm0\" } drop";
    let (wanted, mut seen) = offering(false);
    let steps = plan(&wanted, &seen);
    assert!(text(&steps).contains(guard), "{steps:?}");
    assert!(
        matches!(steps[0], Step::Table(_)),
        "the guard comes first: {steps:?}"
    );

    // Docker comes.
    seen.switched = ["lan0", "p2pvm0"].map(str::to_owned).into();
    seen.forwarding
        .values_mut()
        .for_each(|forwards| *forwards = ForwardingState::ForUs);
    seen.table = TableState::Made(text(&steps));
    assert_eq!(plan(&wanted, &seen), []);
    seen.forwarding
        .values_mut()
        .for_each(|forwards| *forwards = ForwardingState::ForOthers);
    let steps = plan(&wanted, &seen);
    assert!(!text(&steps).contains(guard), "{steps:?}");
    let steps = plan(&wanted.nothing(), &seen);
    assert!(
        !steps
            .iter()
            .any(|step| matches!(step, Step::Restore { change: true, .. })),
        "others need it now: {steps:?}"
    );

    let (wanted, seen) = offering(true);
    assert!(!text(&plan(&wanted, &seen)).contains(guard));
}

#[test]
fn rules_of_a_network_whose_interface_went_are_removed() {
    let wanted = NetworkNeeds {
        device: "p2pvm0".into(),
        network: "n".into(),
        ..NetworkNeeds::default()
    };
    let stale = [
        Rule::End,
        Rule::Around(Sockets::Udp(9)),
        Rule::Around(Sockets::Marked),
        Rule::Table(0x7000_0009),
    ]
    .map(|rule| PlacedRule { base: 5300, rule });
    let seen = Observed {
        device: Some(1),
        rules: stale.to_vec(),
        rules_base: 5300,
        ..Observed::default()
    };
    let steps = plan(&wanted, &seen);
    assert_eq!(
        steps.first(),
        Some(&Step::Unrule(stale[3])),
        "tables go before what leads around them"
    );
    assert_eq!(steps.len(), stale.len());
}
