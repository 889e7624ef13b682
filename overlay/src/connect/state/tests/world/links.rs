//! How simulated members meet, punch and settle on a path: what the driver does, in virtual time.

use super::{GLANCE, Node, World};
use crate::{
    connect::{
        message::{NatKind, Reachability},
        state::{
            Action, Input, Statement,
            links::Link,
            reach::PresentLink,
            settle::{self, Reach, Remedy, Settling, remedy},
            tests::gate::Home,
        },
    },
    id::MemberId,
    plane::{Path, paths::Paths},
};
use rand::Rng;
use std::time::{Duration, Instant};

const MAPPING_LIMIT: Duration = Duration::from_millis(1000);

impl World {
    pub(super) fn tick(&mut self, n: usize) {
        let (now, connected) = (self.now, self.connected(n));
        let others = self.rng.random_range(0..2);
        let node = &mut self.nodes[n];
        node.gate.take_ports(others);
        let link = |(m, paths): (&usize, &Paths)| {
            Some(Link {
                member: MemberId([*m as u8 + 1; 32]),
                path: paths.selected()?,
                rtt: paths.rtt(),
                since: paths.since()?,
                idle: Duration::ZERO,
                from_second_port: false,
                relays: paths.relays(),
            })
        };
        let links: Vec<Link> = node.paths.iter().filter_map(link).collect();
        node.state.handle(
            now,
            Input::Tick {
                host: &node.host,
                links: &links,
                connected: &connected,
            },
        );
        self.act(n);
        self.after(Duration::from_secs(1), move |w| w.tick(n));
    }

    pub(super) fn act(&mut self, n: usize) {
        while let Some(action) = self.nodes[n].state.poll() {
            match action {
                Action::Try {
                    member,
                    guessed,
                    told,
                } => {
                    let m = self.index(member);
                    for addr in guessed.into_iter().chain(told) {
                        self.try_path(n, m, Path::Direct(addr));
                    }
                }
                Action::PunchLater(member, theirs) => {
                    let m = self.index(member);
                    self.punch_later(n, m, theirs, self.now + MAPPING_LIMIT);
                }
                Action::Improve { member, path, .. } => {
                    let m = self.index(member);
                    self.meet(n, m, move |w, theirs, _| {
                        let ours = w.nodes[n].state.nat.kind;
                        if remedy(path, ours, theirs.nat) == Remedy::Relay {
                            w.settle(n, m, Settling::by_relay(theirs));
                        }
                    });
                }
                _ => {}
            }
        }
    }

    fn punch_later(&mut self, n: usize, m: usize, theirs: Reachability, until: Instant) {
        let now = self.now;
        let (member, is_direct) = (self.nodes[m].member, self.is_direct(n, m));
        let node = &mut self.nodes[n];
        if !node.state.nat.mapping_known && now < until {
            return self.after(GLANCE, move |w| w.punch_later(n, m, theirs, until));
        }
        node.state.nat.mapping_known = true;
        if node.state.nat.kind == NatKind::Counting {
            return self.meet(n, m, |_, _, _| {});
        }
        let host = node.host.clone();
        let due = Input::PunchDue {
            member,
            host: &host,
            theirs,
            is_direct,
        };
        node.state.handle(now, due);
        self.act(n);
    }

    pub fn is_direct(&self, n: usize, m: usize) -> bool {
        matches!(self.path(n, m), Some(Path::Direct(_)))
    }

    fn look_at_the_counter(&mut self, n: usize, then: impl FnOnce(&mut World) + 'static) {
        let Some((helper, _)) = self.nodes[n].state.counter_helper() else {
            return then(self);
        };
        let m = self.index(helper);
        self.map_anew(n, m, move |w, newest| {
            if let Some(newest) = newest {
                w.nodes[n].state.nat.four.finding.newest = Some((newest, w.now));
            }
            then(w);
        });
    }

    /// Exchanges addresses over the control plane.
    fn meet(
        &mut self,
        n: usize,
        m: usize,
        then: impl FnOnce(&mut World, Reachability, Duration) + 'static,
    ) {
        self.look_at_the_counter(n, move |w| {
            let (asked, ours) = (w.now, w.reachability(n));
            let (there, back) = (w.delay(n, m), w.delay(n, m));
            w.after(there, move |w| {
                w.look_at_the_counter(m, move |w| {
                    w.met(m, n, ours);
                    let theirs = w.reachability(m);
                    w.after(back, move |w| {
                        w.met(n, m, theirs.clone());
                        let took = w.now - asked;
                        then(w, theirs, took);
                    });
                });
            });
        });
    }

    fn met(&mut self, n: usize, m: usize, theirs: Reachability) {
        let (now, member, is_direct) = (self.now, self.nodes[m].member, self.is_direct(n, m));
        let way = self.path(n, m);
        self.watch_paths(n, m);
        let node = &mut self.nodes[n];
        let met = Input::Met {
            member,
            host: &node.host,
            told: &theirs.candidates,
            statement: Statement {
                reachability: theirs.clone(),
                hidden: None,
            },
            link: PresentLink {
                is_direct,
                carries: &|to| way == Some(Path::Direct(*to)),
            },
        };
        node.state.handle(now, met);
        self.act(n);
    }

    /// A dials B.
    pub fn dial(&mut self, n: usize, m: usize, after: Duration) {
        self.talks.push((n, m));
        self.after(after, move |w| {
            let member = w.nodes[m].member;
            let now = w.now;
            w.nodes[n].state.retries.hold_off(member, now);
            w.meet(n, m, move |w, theirs, took| {
                let node = &w.nodes[n];
                let met = (theirs, took);
                let settling = Settling::new(w.now, &node.state, &node.host, Reach::Any, met);
                w.settle(n, m, settling);
            });
        });
    }

    fn settle(&mut self, n: usize, m: usize, mut settling: Settling) {
        if settling.outcome().is_some() {
            return;
        }
        let Some(action) = settling.poll() else {
            return;
        };
        match action {
            settle::Action::AwaitMapping => {
                self.after(MAPPING_LIMIT, move |w| {
                    w.settled(n, m, settling, settle::Input::MappingKnown);
                });
            }
            settle::Action::AwaitPath(reach, limit) => {
                self.await_path(n, m, settling, (reach, self.now + limit));
            }
            settle::Action::ListRelays => {
                let open = |node: &Node| node.gate.home() == Home::Open;
                let open = self.nodes.iter().filter(|node| open(node)).take(1);
                let relays = open.map(|node| node.member).collect();
                self.settled(n, m, settling, settle::Input::Relays(relays));
            }
            settle::Action::TryRelay(relay) => {
                let r = self.index(relay);
                if ![n, m].contains(&r) {
                    self.try_path(n, m, Path::Relayed(relay));
                }
                let until = self.now + settle::PATIENCE.1;
                self.await_relay(n, m, settling, until);
            }
            settle::Action::OpenStream => {
                self.try_path(n, m, Path::Stream);
                self.settled(n, m, settling, settle::Input::Stream(true));
            }
            settle::Action::PreferStream => self.settle(n, m, settling),
        }
    }

    fn settled(&mut self, n: usize, m: usize, mut settling: Settling, input: settle::Input) {
        let (now, node) = (self.now, &self.nodes[n]);
        let view = settle::View {
            host: &node.host,
            path: self.path(n, m),
            is_edge: false,
        };
        settling.handle(now, &node.state, &view, input);
        self.settle(n, m, settling);
    }

    fn await_path(
        &mut self,
        n: usize,
        m: usize,
        settling: Settling,
        (reach, until): (Reach, Instant),
    ) {
        let path = reach.served_by(self.path(n, m));
        if path.is_none() && self.now < until {
            return self.after(GLANCE, move |w| {
                w.await_path(n, m, settling, (reach, until));
            });
        }
        self.settled(n, m, settling, settle::Input::Path(path));
    }

    fn await_relay(&mut self, n: usize, m: usize, settling: Settling, until: Instant) {
        let path = Reach::Edge.served_by(self.path(n, m));
        if path.is_none() && self.now < until {
            return self.after(GLANCE, move |w| w.await_relay(n, m, settling, until));
        }
        self.settled(n, m, settling, settle::Input::Relayed(path));
    }
}
