//! Finds members by name, id or address, and gives names to members and paths, for requests and
//! answers of all services.

use crate::parts::Parts;
use p2pvm_api::{Failure, Kind, Outcome, PathKind};
use p2pvm_dhcp::{NameKind, Subject};
use p2pvm_overlay::{
    MemberId,
    membership::{Issuer, valid_name},
    plane::{Path, PathInfo},
};
use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// How long a lookup of a name or an address may take. Reason: members that answer later do not
/// answer now.
pub(crate) const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// The kind of a path.
pub(crate) fn path_kind(path: &Path) -> PathKind {
    match path {
        Path::Direct(_) => PathKind::Direct,
        Path::Relayed(_) => PathKind::Relayed,
        Path::Ring => PathKind::Ring,
        Path::Stream => PathKind::Stream,
    }
}

/// The kind of a link's path, unless it is silent.
pub(crate) fn link_kind(link: &PathInfo) -> Option<PathKind> {
    let answers = link.silent(Instant::now()).is_none();
    answers.then(|| path_kind(&link.path))
}

impl Parts {
    /// A member's name, or its short id where it is not known.
    pub(crate) fn name_of(&self, member: MemberId) -> String {
        if member == self.me() {
            return self.certificate.name().to_owned();
        }
        let certificate = self
            .control
            .certificate(member)
            .or_else(|| self.connector.certificate(member));
        certificate.map_or_else(|| member.short(), |c| c.name().to_owned())
    }

    /// A path in words.
    pub(crate) fn path_text(&self, path: &Path) -> String {
        match path {
            Path::Direct(address) => format!("direct {address}"),
            Path::Relayed(via) => format!("relayed via {}", self.name_of(*via)),
            Path::Ring => "over the ring".to_owned(),
            Path::Stream => "stream".to_owned(),
        }
    }

    /// The path of a link in words; a path without answers is called silent.
    pub(crate) fn link_text(&self, link: &PathInfo) -> String {
        let path = self.path_text(&link.path);
        let silence = link.silent(Instant::now());
        silence.map_or_else(
            || path.clone(),
            |silence| format!("silent for {} s ({path})", silence.as_secs()),
        )
    }

    pub(crate) fn address_of(&self, member: MemberId) -> Option<String> {
        let subnet = self.addresses.subnet();
        let host = self.plane.host_of(&member);
        host.filter(|ip| matches!(ip, IpAddr::V4(v4) if subnet.contains(*v4)))
            .map(|ip| ip.to_string())
    }

    /// A name as people write it (`lab3`, `Lab3.lab.p2p.`) without the network's domain.
    pub(crate) fn plain_name(&self, text: &str) -> String {
        let text = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let domain = format!(".{}", self.domain());
        text.strip_suffix(&domain)
            .map_or_else(|| text.clone(), str::to_owned)
    }

    /// Finds a member by name, with or without the network's domain, id, the beginning of its id,
    /// or address; one that this node has not met by the network's records.
    pub(crate) async fn resolve_member(&self, text: &str) -> Outcome<MemberId> {
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
        let addresses = &self.addresses;
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
        // Any member may write a name into a record of its own: the certificate has the real one.
        match self
            .control
            .find_certificate(member)
            .await
            .or_else(|| self.connector.certificate(member))
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
    pub(crate) fn known_member(&self, text: &str) -> Outcome<MemberId> {
        if let Ok(id) = text.parse::<MemberId>() {
            return Ok(id);
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            let routes = self.plane.routes();
            let found = routes
                .iter()
                .find(|(known, _)| *known == ip)
                .map(|(_, route)| route.member);
            // A member's IPv6 address follows from its key, also where no packet has gone there
            // yet.
            let members = || self.control.peers().into_iter().map(|peer| peer.member);
            let found = found.or_else(|| {
                members().find(|member| IpAddr::V6(self.network.member_v6(*member)) == ip)
            });
            return found.ok_or_else(|| {
                Failure::not_found(format!("no member is known to have the address {text}"))
            });
        }
        let lower = self.plain_name(text);
        let mut known: Vec<_> = self
            .control
            .peers()
            .into_iter()
            .map(|p| (p.member, p.name))
            .collect();
        known.push((self.me(), self.certificate.name().to_owned()));
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

    /// Whether a member is the founder's machine or a delegate: the root's signature says so in its
    /// certificate.
    pub(crate) fn is_issuer(&self, member: MemberId) -> bool {
        let certificate = self.control.certificate(member);
        certificate.is_some_and(|certificate| {
            certificate.rights().admit && self.trust.verify(&certificate).is_ok()
        })
    }

    pub(crate) fn issuer(&self) -> Outcome<Issuer<'_>> {
        self.control.issuer().ok_or_else(|| {
            Failure::refused(
                "this member may not invite or revoke: do it on the founder's machine or on a \
                    delegate (joined with 'p2pvm invite --delegate')",
            )
        })
    }

    /// This host's IPv6 address in the network: it follows from its key.
    pub(crate) fn own_v6(&self) -> Ipv6Addr {
        self.network.member_v6(self.me())
    }

    /// The names that this host goes by in the network.
    pub(crate) fn host_names(&self) -> Vec<String> {
        let name = self.certificate.name();
        vec![name.to_owned(), format!("{name}.{}", self.domain())]
    }

    /// Whether an address is one of the network's own.
    pub(crate) fn in_network(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => self.addresses.subnet().contains(v4),
            IpAddr::V6(v6) => v6.octets()[..6] == self.network.ula_prefix().octets()[..6],
        }
    }
}
