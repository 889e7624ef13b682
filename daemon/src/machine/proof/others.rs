//! The ways to other members' hosts, and their packets' ways back to here.

use super::{Proofs, back, found::MemberResults, twice};
use p2pvm_overlay::plane::ProofFailure;
use std::{net::IpAddr, time::Duration};

/// How many members are proved in one round: normally, and while one does not answer. Reason: an
/// idle member should send little, and the others come in the next rounds; several members tell one
/// member's fault from this host's.
const MEMBERS: (usize, usize) = (1, 3);
/// How long packets may take to another host and back.
pub(super) const MEMBER_LIMIT: Duration = Duration::from_secs(3);

impl Proofs {
    pub(super) async fn prove_others(&self, round: usize) -> MemberResults {
        let mut members = self.parts.fabric().connected();
        // No link is made only for this.
        members.retain(|member| self.parts.plane.path(*member).is_some());
        members.sort_unstable();
        let mut found = MemberResults::default();
        let Some(own) = self.reach.address().map(IpAddr::V4) else {
            return found;
        };
        let skip = round.checked_rem(members.len()).unwrap_or(0);
        for (at, member) in members
            .iter()
            .cycle()
            .skip(skip)
            .take(members.len().min(MEMBERS.1))
            .copied()
            .enumerate()
        {
            if at >= MEMBERS.0 && found.silent.is_empty() && found.no_way_back.is_empty() {
                break;
            }
            let Some(addr) = self
                .parts
                .address_of(member)
                .and_then(|addr| addr.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let name = self.parts.name_of(member);
            if back::may(
                &self.parts,
                &self.policies,
                (self.parts.me(), own),
                (member, addr),
            ) {
                match twice(|| self.parts.plane.prove_member(member, addr, MEMBER_LIMIT)).await {
                    Ok(_) => found.proved += 1,
                    Err(ProofFailure::MemberSilent { .. }) => found.silent.push((
                        name.clone(),
                        ProofFailure::MemberSilent { addr }.to_string(),
                    )),
                    // A missing path is for 'p2pvm peers' to show; the rest is this host's own
                    // part, proved before.
                    Err(_) => continue,
                }
            }
            if back::may(
                &self.parts,
                &self.policies,
                (member, addr),
                (self.parts.me(), own),
            ) {
                match back::ask(&self.parts, member, own).await {
                    Some(Ok(())) => found.proved += 1,
                    Some(Err(why)) => found.no_way_back.push((name, why)),
                    None => {}
                }
            }
        }
        found
    }
}
