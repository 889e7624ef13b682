//! Invites and revocations.

use super::service::Members;
use p2pvm_api::{Doing, Failure, InviteAnswer, InviteRequest, Outcome, RevokeAnswer};
use p2pvm_overlay::{
    Fabric, MemberId, UnixTime,
    control::ControlError,
    membership::{Groups, Invite, InviteTerms, Target},
};
use std::time::Duration;

/// How long to wait for this member's own addresses. Reason: they are known by then, or there are
/// none.
const ADDRESSES_LIMIT: Duration = Duration::from_secs(5);
/// The note on an invite that machines at other places may be unable to use.
const UNREACHABLE: &str = "this machine knows no address at which machines at other places reach \
    it; for machines of this place the invite is \
    good. See 'p2pvm netcheck', or forward the ports on the router and set reachable_at in \
    node.toml";
/// The note on a delegate's revocation of a member whose certificate is not known here.
const UNMET_REVOKED: &str = "no member asked knows whose id that is; if it is a delegate's, this \
    has no effect: only the founder's machine revokes those";
/// How long an invite may be valid. Reason: one that its issuer has forgotten is a security hole.
const MAX_INVITE_SECONDS: u64 = 366 * 24 * 3600;

/// One address for each host by which this member can be dialled: QUIC if there is one; at most two
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

impl Members {
    /// The addresses by which others can dial this member; right after the start they take a
    /// moment.
    async fn contact_addresses(&self) -> Outcome<Vec<String>> {
        let began = std::time::Instant::now();
        // A router that is slow to answer does not delay an invite for long: the invite may be for
        // the next room.
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
        let invite = Invite::issue(
            &self.parts.issuer()?,
            &self.parts.network,
            &addresses,
            terms,
        )
        .map_err(|_| Failure::refused("only the founder's machine can invite delegates"))?;
        let note = (!self.parts.control.is_reachable()).then(|| UNREACHABLE.to_owned());
        Ok(InviteAnswer {
            invite: invite.to_text(),
            id: invite.id().to_string().into(),
            note,
        })
    }

    /// Expels a member, with all members that depend on it, or cancels an invite.
    pub async fn revoke(&self, what: &str) -> Outcome<RevokeAnswer> {
        let target = match what.parse() {
            Ok(invite) => Target::Invite(invite),
            Err(_) => Target::Member(self.parts.resolve_member(what).await?),
        };
        if matches!(target, Target::Member(member) if member == self.parts.me()) {
            return Err(Failure::refused(
                "this member cannot revoke itself: 'p2pvm leave' instead",
            ));
        }
        let by_root = self.parts.issuer()?.is_root();
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
            Err(ControlError::NoneLeft) => {
                return Err(Failure::refused(
                    "this member has revoked as many members and invites as a delegate may: revoke \
                        it on the machine that has root.key",
                ));
            }
            done => done.doing("revoking")?,
        }
        // A member not met here may be a delegate, whom this member cannot revoke.
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

    /// The names of the other members that are revoked with `member`, as far as they are known
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
