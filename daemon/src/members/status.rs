//! What the control API says of this node and its members, and what it asks of the network as a
//! whole.

use crate::http::report::Reporter;
use crate::{Daemon, members::netcheck, placement::load};
use p2pvm_api::{
    Doing, Failure, HealthView, InviteAnswer, InviteRequest, Kind, Outcome, Peer, PingSummary,
    Pong, RevokeAnswer, Status, Traffic,
};
use p2pvm_dhcp::{NameKind, Subject};
use p2pvm_overlay::{
    Fabric, MemberId, UnixTime,
    connect::CandidateKind,
    control::ControlError,
    membership::{Groups, Invite, InviteTerms, Issuer, Target, valid_name},
    plane::{Flow, Path, PathInfo, TRAFFIC_NOISE},
};
use p2pvm_vm_manager::host::VmState;
use std::{
    net::IpAddr,
    sync::PoisonError,
    time::{Duration, Instant},
};

/// A probe that is not answered within this is lost.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// A member that is asked whether it lives has answered within this, or is shown as silent.
const LOOK_LIMIT: Duration = Duration::from_millis(700);
/// Who a name or an address belongs to is known within this, or cannot be found out now.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// Own addresses are known within this, or there are none.
const ADDRESSES_LIMIT: Duration = Duration::from_secs(5);
/// What comes with an invite that nobody from elsewhere may be able to use.
const UNREACHABLE: &str = "this machine knows no address at which machines at other places reach \
    it; for machines of this place the invite is \
    good. See 'p2pvm netcheck', or forward the ports on the router and set reachable_at in \
    node.toml";
/// What comes with a delegate's revocation of somebody whom no member met here can vouch for.
const UNMET_REVOKED: &str = "no member asked knows whose id that is; if it is a delegate's, this \
    has no effect: only the founder's machine revokes those";
/// An invite that outlives its issuer's attention is a hole.
const MAX_INVITE_SECONDS: u64 = 366 * 24 * 3600;

/// One address for each host this member can be knocked at: QUIC where there is it; at most two
/// hosts, IPv4 first.
fn shortest(addresses: Vec<String>) -> Vec<String> {
    let quic: Vec<String> = addresses
        .iter()
        .filter(|a| a.contains("/quic-v1"))
        .cloned()
        .collect();
    let mut chosen = if quic.is_empty() { addresses } else { quic };
    chosen.sort_by_key(|a| !a.starts_with("/ip4/"));
    let host = |a: &String| a.split('/').nth(2).map(str::to_owned);
    chosen.dedup_by_key(|a| host(a));
    chosen.truncate(2);
    chosen
}

impl Daemon {
    /// A member's name, or its short id where it is not known.
    pub fn name_of(&self, member: MemberId) -> String {
        if member == self.me() {
            return self.parts.certificate.name().to_owned();
        }
        let certificate = self
            .parts
            .control
            .certificate(member)
            .or_else(|| self.parts.connector.certificate(member));
        certificate.map_or_else(|| member.short(), |c| c.name().to_owned())
    }

    /// A path in words.
    pub fn path_text(&self, path: &Path) -> String {
        match path {
            Path::Direct(address) => format!("direct {address}"),
            Path::Relayed(via) => format!("relayed via {}", self.name_of(*via)),
            Path::Ring => "over the ring".to_owned(),
            Path::Stream => "stream".to_owned(),
        }
    }

    /// The path of a link in words: what does not answer is called silent, not by the path that it
    /// was.
    pub fn link_text(&self, link: &PathInfo) -> String {
        let path = self.path_text(&link.path);
        let silence = link.silent(Instant::now());
        silence.map_or_else(
            || path.clone(),
            |silence| format!("silent for {} s ({path})", silence.as_secs()),
        )
    }

    /// [`Daemon::peers`] after what lately said nothing was asked whether it lives.
    pub async fn living_peers(&self) -> Vec<Peer> {
        self.parts.plane.look_at_silent(LOOK_LIMIT).await;
        self.peers()
    }

    /// The path of a probe's answer in words.
    fn pong_path(&self, pong: &p2pvm_overlay::plane::Pong) -> String {
        match pong.hops {
            Some(1) => "over the ring, 1 hop".to_owned(),
            Some(hops) => format!("over the ring, {hops} hops"),
            None => self.path_text(&pong.path),
        }
    }

    pub(crate) fn address_of(&self, member: MemberId) -> Option<String> {
        let subnet = self.parts.addresses.subnet();
        let host = self.parts.plane.host_of(&member);
        host.filter(|ip| matches!(ip, IpAddr::V4(v4) if subnet.contains(*v4)))
            .map(|ip| ip.to_string())
    }

    /// A name as people write it (`lab3`, `Lab3.lab.p2p.`) without the network's domain.
    fn plain_name(&self, text: &str) -> String {
        let text = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let domain = format!(".{}", self.parts.domain());
        text.strip_suffix(&domain)
            .map_or_else(|| text.clone(), str::to_owned)
    }

    /// Finds a member by name, with or without the network's domain, id, the beginning of its id,
    /// or address; one that this node has not met by the network's records.
    pub async fn resolve_member(&self, text: &str) -> Outcome<MemberId> {
        let looked_up = tokio::time::timeout(LOOKUP_LIMIT, self.look_member_up(text)).await;
        looked_up.unwrap_or_else(|_| {
            Err(Failure::timed_out(format!(
                "'{text}' cannot be looked up now: the members asked do not answer"
            )))
        })
    }

    async fn look_member_up(&self, text: &str) -> Outcome<MemberId> {
        let unknown = match self.known_member(text) {
            Err(failure) if failure.kind == Kind::NotFound => failure,
            known => return known,
        };
        let unavailable = |e: p2pvm_dhcp::Error| {
            Failure::timed_out(format!(
                "'{text}' cannot be looked up now: {}",
                p2pvm_host::chain(&e)
            ))
        };
        let addresses = &self.parts.addresses;
        if let Ok(ip) = text.parse::<IpAddr>() {
            let holder = addresses.resolve(ip).await.map_err(unavailable)?;
            return holder.map(|holder| holder.member).ok_or(unknown);
        }
        let lower = self.plain_name(text);
        if !valid_name(&lower) {
            return Err(unknown);
        }
        let Some(Subject::Member(member)) = addresses
            .resolve_name(&lower, NameKind::Host)
            .await
            .map_err(unavailable)?
            .map(|n| n.subject)
        else {
            return Err(unknown);
        };
        // Anybody may write a name into a record of its own: the certificate says whose it is.
        match self
            .parts
            .control
            .find_certificate(member)
            .await
            .or_else(|| self.parts.connector.certificate(member))
        {
            Some(certificate) if certificate.name() == lower => Ok(member),
            Some(_) => Err(unknown),
            None => Err(Failure::timed_out(format!(
                "'{text}' is {}, which nobody here can vouch for now: try again",
                member.short()
            ))),
        }
    }

    /// Finds a member among those that this node has met.
    pub fn known_member(&self, text: &str) -> Outcome<MemberId> {
        if let Ok(id) = text.parse::<MemberId>() {
            return Ok(id);
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            let routes = self.parts.plane.routes();
            let found = routes
                .iter()
                .find(|(known, _)| *known == ip)
                .map(|(_, route)| route.member);
            // A member's IPv6 address follows from its key, also where no packet has gone there
            // yet.
            let members = || {
                self.parts
                    .control
                    .peers()
                    .into_iter()
                    .map(|peer| peer.member)
            };
            let found = found.or_else(|| {
                members().find(|member| IpAddr::V6(self.parts.network.member_v6(*member)) == ip)
            });
            return found.ok_or_else(|| {
                Failure::not_found(format!("no member is known to have the address {text}"))
            });
        }
        let lower = self.plain_name(text);
        let mut known: Vec<_> = self
            .parts
            .control
            .peers()
            .into_iter()
            .map(|p| (p.member, p.name))
            .collect();
        known.push((self.me(), self.parts.certificate.name().to_owned()));
        let found: Vec<_> = known
            .iter()
            .filter(|(id, name)| {
                *name == lower || (lower.len() >= 4 && id.to_string().starts_with(&lower))
            })
            .collect();
        match found.as_slice() {
            [(id, _)] => Ok(*id),
            [] => Err(Failure::not_found(format!(
                "no member '{text}' is known: see 'p2pvm peers'"
            ))),
            _ => Err(Failure::usage(format!(
                "'{text}' fits several members: write more of the id"
            ))),
        }
    }

    pub(crate) fn running_vms(&self) -> usize {
        self.host
            .list()
            .iter()
            .filter(|vm| vm.state == VmState::Running)
            .count()
    }

    /// This node.
    pub fn status(&self) -> Status {
        let lease = self.reach.lease().borrow().clone();
        let parts = &self.parts;
        let mut status = Status {
            health: HealthView::default(),
            findings: self.findings(),
            address_wanting: if lease.is_none() {
                self.reach.wanting()
            } else {
                None
            },
            member: self.me().to_string(),
            name: parts.certificate.name().to_owned(),
            network: parts.network.name.clone(),
            network_id: parts.network.id.to_string(),
            subnet: parts.network.subnet.to_string(),
            address: lease.map(|l| l.v4.to_string()),
            address_v6: parts.network.member_v6(self.me()).to_string(),
            reflexive: self.parts.connector.reflexive().map(|a| a.to_string()),
            nat: self.parts.connector.nat_kind().to_string(),
            mapped: self
                .parts
                .connector
                .candidates()
                .iter()
                .find(|c| c.kind == CandidateKind::Mapped)
                .map(|c| c.addr.to_string()),
            punches: netcheck::punches(&self.parts.connector.punches()),
            connected: parts.control.connected().len(),
            known: parts
                .control
                .peers()
                .iter()
                .filter(|peer| peer.member != self.me())
                .count(),
            joined_another: parts.has_bootstrap,
            ring: self.ring_view(),
            running_vms: self.running_vms(),
            answering_vms: self.guests.answering(),
            cpu: self.manager.cpu(),
            listen: parts.control.listen_addrs(),
            up_seconds: self.began.elapsed().as_secs(),
            start_ms: *self.times.lock().unwrap_or_else(PoisonError::into_inner),
            resident_bytes: load::resident_bytes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        status.health = self.health(&status);
        status
    }

    /// The other members this node knows of.
    pub fn peers(&self) -> Vec<Peer> {
        let ring = self.ring_neighbours();
        let mut peers: Vec<_> = self
            .parts
            .control
            .peers()
            .into_iter()
            .filter(|p| p.member != self.me())
            .map(|p| {
                let link = self.parts.plane.path(p.member);
                Peer {
                    member: p.member.to_string(),
                    name: p.name,
                    address: self.address_of(p.member),
                    connected: p.connected,
                    linked: link.as_ref().is_some_and(|l| {
                        l.path != Path::Stream && l.silent(Instant::now()).is_none()
                    }),
                    path: link.as_ref().map(|l| self.link_text(l)),
                    rtt_ms: link
                        .as_ref()
                        .and_then(|l| l.rtt)
                        .map(|rtt| rtt.as_secs_f64() * 1e3),
                    sent_bytes: link.as_ref().map_or(0, |l| l.tx_bytes),
                    received_bytes: link.as_ref().map_or(0, |l| l.rx_bytes),
                    packet_bytes: link.as_ref().map(|l| l.packet_bytes),
                    ring: ring.get(&p.member).cloned(),
                }
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    /// Who talks with whom through this node; without `all`, only what is not noise beside the
    /// largest.
    pub fn traffic(&self, all: bool) -> Vec<Traffic> {
        let matrix = self.parts.plane.traffic();
        let known: Vec<_> = if all {
            matrix.flows.iter().collect()
        } else {
            matrix.significant(TRAFFIC_NOISE).collect()
        };
        let row = |flow: &Flow| Traffic {
            local: flow.local.to_string(),
            remote: flow.remote.to_string(),
            member: flow.member.to_string(),
            name: self.name_of(flow.member),
            path: self
                .parts
                .plane
                .path(flow.member)
                .map(|link| self.path_text(&link.path)),
            sent_bytes: flow.sent,
            received_bytes: flow.received,
            bytes_per_second_1s: flow.rates[0],
            bytes_per_second_4s: flow.rates[1],
            bytes_per_second_16s: flow.rates[2],
        };
        known.into_iter().map(row).collect()
    }

    /// Makes a link, trying again for a while: a member that has just joined is known before it can
    /// be reached.
    async fn link(&self, member: MemberId) -> Outcome<()> {
        let mut last = None;
        let tries = async {
            loop {
                match self.parts.connector.ensure(member).await {
                    Ok(_) => return,
                    Err(e) => last = Some(p2pvm_host::chain(&e)),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // One try alone may take longer than anybody waits for a ping.
        if tokio::time::timeout(PING_TIMEOUT, tries).await.is_ok() {
            return Ok(());
        }
        let name = self.name_of(member);
        let why =
            last.unwrap_or_else(|| format!("it has not answered for {} s", PING_TIMEOUT.as_secs()));
        Err(Failure::timed_out(format!(
            "no path to {name}: {}",
            why.replace(&member.short(), &name)
        )))
    }

    /// The member that a ping to `text` goes to, and what `text` is there if it is a VM and not the
    /// member itself.
    async fn ping_target(&self, text: &str) -> Outcome<(MemberId, Option<String>)> {
        let failure = match self.resolve_member(text).await {
            Err(failure) if failure.kind == Kind::NotFound => failure,
            found => return found.map(|member| (member, None)),
        };
        let name = self.plain_name(text);
        let name = name.strip_suffix(".vm").unwrap_or(&name);
        if !valid_name(name) {
            return Err(failure);
        }
        let addresses = &self.parts.addresses;
        let found =
            tokio::time::timeout(LOOKUP_LIMIT, addresses.resolve_name(name, NameKind::Vm)).await;
        let Ok(Ok(Some(named))) = found else {
            return Err(failure);
        };
        let held =
            tokio::time::timeout(LOOKUP_LIMIT, addresses.resolve(IpAddr::V4(named.v4))).await;
        let Ok(Ok(Some(holder))) = held else {
            return Err(failure);
        };
        if !matches!(named.subject, Subject::Vm(_)) {
            return Err(failure);
        }
        Ok((holder.member, Some(name.to_owned())))
    }

    /// Probes the packet path to a member, or to the member that has a VM.
    pub async fn ping(
        &self,
        text: &str,
        count: u32,
        interval: Duration,
        reporter: &Reporter,
    ) -> Outcome<PingSummary> {
        let (member, vm) = self.ping_target(text).await?;
        if member == self.me() {
            return Err(Failure::usage(match vm {
                Some(vm) => format!(
                    "VM {vm} is on this host: ping its address from here, {text} is no other \
                        member's"
                ),
                None => format!("{text} is this member"),
            }));
        }
        let host = vm.map_or_else(String::new, |_| {
            format!("its host {}, ", self.name_of(member))
        });
        self.link(member).await?;
        let mut received = 0u32;
        for seq in 1..=count {
            let pong = self.parts.plane.ping(member, PING_TIMEOUT).await;
            let item = match &pong {
                Ok(pong) => Pong {
                    seq,
                    rtt_ms: Some(pong.rtt.as_secs_f64() * 1e3),
                    path: format!("{host}{}", self.pong_path(pong)),
                },
                Err(_) => Pong {
                    seq,
                    rtt_ms: None,
                    path: String::new(),
                },
            };
            received += u32::from(pong.is_ok());
            reporter.item(&item).await?;
            if seq < count {
                tokio::time::sleep(interval.saturating_sub(pong.map_or(Duration::ZERO, |p| p.rtt)))
                    .await;
            }
        }
        Ok(PingSummary {
            received,
            sent: count,
        })
    }

    pub(crate) fn issuer(&self) -> Outcome<Issuer<'_>> {
        self.parts.control.issuer().ok_or_else(|| {
            Failure::refused(
                "this member may not invite or revoke: do it on the founder's machine or on a \
                    delegate (joined with 'p2pvm invite --delegate')",
            )
        })
    }

    /// Where others can knock; right after the start it takes a moment until that is known.
    async fn contact_addresses(&self) -> Outcome<Vec<String>> {
        let began = std::time::Instant::now();
        // A router that is slow to answer does not hold an invite up for long: it may be for the
        // next room.
        let _ = tokio::time::timeout(ADDRESSES_LIMIT, self.parts.control.asked_router()).await;
        loop {
            let addresses = self.parts.control.contact_addrs();
            if !addresses.is_empty() {
                return Ok(addresses);
            }
            if began.elapsed() > ADDRESSES_LIMIT {
                return Err(Failure::refused(
                    "this machine has no address at which another could knock: connect it to a \
                        network first",
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Issues an invite.
    pub async fn invite(&self, r: &InviteRequest) -> Outcome<InviteAnswer> {
        if r.uses == 0 || r.expires_seconds == 0 || r.expires_seconds > MAX_INVITE_SECONDS {
            return Err(Failure::usage(
                "an invite needs at least one use, and expires within a second to a year",
            ));
        }
        let groups = Groups::new(r.groups.iter().map(String::as_str))
            .map_err(|e| Failure::usage(e.to_string()))?;
        let terms = InviteTerms {
            uses: r.uses,
            expires: UnixTime::now().plus(r.expires_seconds),
            delegate: r.delegate,
            groups,
        };
        let mut addresses = self.contact_addresses().await?;
        if r.short {
            addresses = shortest(addresses);
        }
        let invite = Invite::issue(&self.issuer()?, &self.parts.network, &addresses, terms)
            .map_err(|_| Failure::refused("only the founder's machine can invite delegates"))?;
        let note = (!self.parts.control.is_reachable()).then(|| UNREACHABLE.to_owned());
        Ok(InviteAnswer {
            invite: invite.to_text(),
            id: invite.id().to_string(),
            note,
        })
    }

    /// Expels a member, with all who hang on it, or cancels an invite.
    pub async fn revoke(&self, what: &str) -> Outcome<RevokeAnswer> {
        let target = match what.parse() {
            Ok(invite) => Target::Invite(invite),
            Err(_) => Target::Member(self.resolve_member(what).await?),
        };
        if matches!(target, Target::Member(member) if member == self.me()) {
            return Err(Failure::refused(
                "this member cannot revoke itself: 'p2pvm leave' instead",
            ));
        }
        let by_root = self.issuer()?.is_root();
        let fall_with = match target {
            Target::Member(member) => self.fall_with(member),
            Target::Invite(_) => Vec::new(),
        };
        let control = &self.parts.control;
        match control.revoke(target).await {
            Err(ControlError::NoRightOverDelegates(_)) => {
                return Err(Failure::refused(format!(
                    "{what} is a delegate or the founder's machine, and the others heed only the \
                        founder's word against it: revoke it on the machine that has root.key"
                )));
            }
            done => done.doing("revoking")?,
        }
        // Whom nobody here has met may be a delegate, against whom this counts nowhere.
        let unknown = matches!(
            target, Target::Member(member) if !by_root && control.certificate(member).is_none()
        );
        let note = unknown.then(|| UNMET_REVOKED.to_owned());
        Ok(RevokeAnswer {
            note,
            revoked: what.to_owned(),
            told: control.connected().len(),
            with: fall_with,
        })
    }

    /// The names of the other members that fall when `member` is revoked, as far as they are known
    /// here.
    fn fall_with(&self, member: MemberId) -> Vec<String> {
        let control = &self.parts.control;
        let others = control
            .peers()
            .into_iter()
            .filter(|peer| peer.member != member);
        let mut names: Vec<String> = others
            .filter(|peer| {
                control
                    .certificate(peer.member)
                    .is_some_and(|c| c.hangs_on(member))
            })
            .map(|peer| peer.name)
            .collect();
        names.sort();
        names
    }

    /// Leaves the network: what is left to do on disk is the caller's.
    pub async fn leave(&self, force: bool) -> Outcome<()> {
        let here: Vec<_> = self.host.list().into_iter().map(|vm| vm.name).collect();
        if !here.is_empty() && !force {
            return Err(Failure::refused(format!(
                "VMs live here ({}): 'p2pvm drain' or delete them first, or lose them with --force",
                here.join(", ")
            )));
        }
        for name in here {
            // Its state goes, so there is nothing for a guest to save. One that cannot be stopped
            // now ends with its state; its record runs out.
            if let Err(error) = self.host.stop_within(&name, Duration::ZERO).await {
                tracing::warn!(vm = %name, error = %p2pvm_host::chain(&error), "not stopped \
                    before leaving");
            }
        }
        if let Err(failure) = self.reach.release().await {
            tracing::warn!(%failure, "the address is not given back; it runs out by itself");
        }
        tracing::info!(dir = %self.layout.dir().display(), "leaving");
        self.parts.control.farewell().await;
        self.stop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[test]
    fn a_short_invite_names_each_host_once_and_ipv4_first() {
        let all = [
            "/ip6/fd00::1/udp/1/quic-v1/p2p/x",
            "/ip4/10.0.0.1/tcp/1/p2p/x",
            "/ip4/10.0.0.1/udp/1/quic-v1/p2p/x",
        ];
        let short = shortest(all.map(str::to_owned).to_vec());
        assert_eq!(
            short,
            [
                "/ip4/10.0.0.1/udp/1/quic-v1/p2p/x",
                "/ip6/fd00::1/udp/1/quic-v1/p2p/x"
            ]
        );
        assert_eq!(
            shortest(vec!["/ip4/10.0.0.1/tcp/1/p2p/x".to_owned()]).len(),
            1
        );
    }
}
