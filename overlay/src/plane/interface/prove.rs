//! Proves that packets pass from stack to stack: this host's own stack through the TUN, and another
//! member's through both TUNs. A link that answers pings shows neither.

use super::{
    answers::TimedAnswer,
    network::{other_address, outgoing_interface},
    probe,
    proof::{Proof, ProofFailure, Question},
};
use crate::lock;
use crate::{
    id::MemberId,
    plane::{core::Inner, handle::Plane, tasks::Task},
};
use p2pvm_host::{device, links::links};
use std::{
    io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long before the first question is repeated and the other kinds are asked too.
const AGAIN: Duration = Duration::from_millis(300);

impl Inner {
    /// Proves on a thread of its own, which inherits the caller's network namespace, the plane's.
    pub fn prove(self: &Arc<Self>, question: Question) {
        let inner = self.clone();
        let started = thread::Builder::new()
            .name("p2pvm-proof".into())
            .spawn(move || {
                let Question { to, limit, answer } = question;
                let proved = match to {
                    None => inner.prove_own_stack(limit),
                    Some(addr) => inner.prove_other_stack(addr, limit),
                };
                let _ = answer.send(proved);
            });
        if let Err(error) = started {
            tracing::debug!(
                error = %p2pvm_host::chain(&error),
                "cannot start the thread of a proof"
            );
        }
    }

    fn prove_own_stack(&self, limit: Duration) -> Result<Proof, ProofFailure> {
        let _turn = lock(&self.proofs.turn);
        let (own, prefix) = self.own_address()?;
        let Some(gateway) = other_address(&own, prefix) else {
            return Err(ProofFailure::Cannot {
                why: format!("the network of {own}/{prefix} has no other address"),
            });
        };
        let probe = probe::Probe::new(gateway, own);
        let (found, answers) = mpsc::channel();
        *lock(&self.proofs.waiting) = Some((probe, found));
        self.proofs.on.store(true, Ordering::Relaxed);
        let asked = self.ask_own_stack(&probe, &answers, limit);
        self.proofs.on.store(false, Ordering::Relaxed);
        *lock(&self.proofs.waiting) = None;
        let device = self.device_name();
        let why = match asked {
            Ok(Outcome::Answered(proof)) => return Ok(proof),
            Ok(Outcome::Refused) => ProofFailure::Refused { device },
            Ok(Outcome::Silent) => ProofFailure::Silent { device },
            Err(error) => ProofFailure::Cannot {
                why: format!("writing into {device}: {error}"),
            },
        };
        Err(self.fault(&own, &gateway).unwrap_or(why))
    }

    /// Asks by an echo request, then by every kind of question that a host may answer.
    fn ask_own_stack(
        &self,
        probe: &probe::Probe,
        answers: &mpsc::Receiver<TimedAnswer>,
        limit: Duration,
    ) -> io::Result<Outcome> {
        let until = Instant::now() + limit;
        let (mut refused, mut by_all) = (false, false);
        while Instant::now() < until && !self.stop.raised() {
            let asked_at = Instant::now();
            for packet in probe.questions(by_all) {
                self.tun()?.send(&packet)?;
            }
            by_all = true;
            let again = (asked_at + AGAIN).min(until);
            while let Ok((answer, at)) =
                answers.recv_timeout(again.saturating_duration_since(Instant::now()))
            {
                match answer {
                    probe::Answer::Reached(by) => {
                        return Ok(Outcome::Answered(Proof {
                            rtt: at.saturating_duration_since(asked_at),
                            by,
                        }));
                    }
                    probe::Answer::Refused => refused = true,
                }
            }
        }
        Ok(if refused {
            Outcome::Refused
        } else {
            Outcome::Silent
        })
    }

    /// Whether the host's stack reaches `addr`, a member's, over a link that has just answered.
    fn prove_other_stack(&self, addr: IpAddr, limit: Duration) -> Result<Proof, ProofFailure> {
        let own = self
            .tables
            .hosts
            .load()
            .iter()
            .map(|(own, _)| *own)
            .find(|own| own.is_ipv4() == addr.is_ipv4());
        let own = own.ok_or(ProofFailure::NoAddress)?;
        match probe::ask_host(own, addr, limit, AGAIN, || self.stop.raised()) {
            Ok(Some(proof)) => Ok(proof),
            Ok(None) => Err(self
                .fault(&own, &addr)
                .unwrap_or(ProofFailure::MemberSilent { addr })),
            Err(error) => Err(self
                .fault(&own, &addr)
                .unwrap_or_else(|| ProofFailure::Cannot {
                    why: error.to_string(),
                })),
        }
    }

    /// The overlay address that stands for this host.
    fn own_address(&self) -> Result<(IpAddr, u8), ProofFailure> {
        let hosts = self.tables.hosts.load();
        hosts
            .iter()
            .find(|(addr, _)| addr.is_ipv4())
            .or_else(|| hosts.first())
            .copied()
            .ok_or(ProofFailure::NoAddress)
    }

    /// What is wrong with the device, its address or the route through it to `to`, if anything.
    fn fault(&self, own: &IpAddr, to: &IpAddr) -> Option<ProofFailure> {
        let device = self.device_name();
        let links = links().ok()?;
        let Some(link) = links.iter().find(|link| link.name == device) else {
            return Some(ProofFailure::Missing { device });
        };
        if !link.up {
            return Some(ProofFailure::Down { device });
        }
        if !link.addresses.iter().any(|(addr, _)| addr == own) {
            return Some(ProofFailure::AddressLost { device, addr: *own });
        }
        let leads_here = device::way_to(to).is_ok_and(|by| by == Some(link.index));
        (!leads_here).then(|| ProofFailure::Elsewhere {
            device,
            addr: *to,
            through: outgoing_interface(to),
        })
    }

    fn device_name(&self) -> String {
        lock(&self.device_wanted).name.clone()
    }

    async fn asked(&self, to: Option<IpAddr>, limit: Duration) -> Result<Proof, ProofFailure> {
        let (answer, answered) = oneshot::channel();
        self.ask_host(Some(Task::Prove(Question { to, limit, answer })));
        answered.await.unwrap_or_else(|_| {
            Err(ProofFailure::Cannot {
                why: "the packet plane is shut down".into(),
            })
        })
    }
}

/// What became of asking.
enum Outcome {
    Answered(Proof),
    /// A firewall said so.
    Refused,
    Silent,
}

impl Plane {
    /// Proves that this host's own stack is reached through the TUN, and answers through it: the
    /// plane writes an ICMP echo request from the network's gateway address, which no host holds,
    /// to the host's overlay address into the TUN, and takes the reply out of what the host sends
    /// into it. A host that ignores echo requests is asked by UDP and TCP.
    ///
    /// No member is involved, so it works without any. It costs some packets through the kernel.
    ///
    /// # Errors
    /// [`ProofFailure`]: the step that fails.
    pub async fn prove_host(&self, timeout: Duration) -> Result<Proof, ProofFailure> {
        self.inner().asked(None, timeout).await
    }

    /// Proves that this host's stack reaches a member's, through both TUNs: an ICMP echo request
    /// that this host's stack sends from its overlay address to `addr`, one of the member's; TCP
    /// if that is not answered. The link is made if it is missing.
    ///
    /// # Errors
    /// [`ProofFailure`]: the step that fails, the link first.
    pub async fn prove_member(
        &self,
        member: MemberId,
        addr: IpAddr,
        timeout: Duration,
    ) -> Result<Proof, ProofFailure> {
        let began = Instant::now();
        if let Err(error) = self.ping(member, timeout).await {
            return Err(ProofFailure::NoPath {
                why: error.to_string(),
            });
        }
        self.inner()
            .asked(
                Some(addr),
                timeout.saturating_sub(began.elapsed()).max(AGAIN),
            )
            .await
    }
}
