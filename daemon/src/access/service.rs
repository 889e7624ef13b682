//! The network's access rules as the control API sets and shows them.

use super::policy::Policies;
use crate::parts::Parts;
use p2pvm_api::{AclAnswer, AclShow, Failure, Outcome};
use p2pvm_dhcp::NameKind;
use p2pvm_overlay::{
    MemberId, UnixTime,
    membership::{NetworkPolicy, Notice, Refusal, SignedPolicy, policy::Selector},
};
use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

/// Finds the member through which an address of an offered subnet is reached.
pub(crate) type Offerer = Box<dyn Fn(&IpAddr) -> Option<MemberId> + Send + Sync>;

/// The access rules of the network.
pub(crate) struct Access {
    pub(super) parts: Arc<Parts>,
    pub(super) policies: Arc<Policies>,
    pub(super) offerer: Offerer,
}

impl Access {
    pub(crate) fn new(parts: Arc<Parts>, policies: Arc<Policies>, offerer: Offerer) -> Arc<Self> {
        Arc::new(Self {
            parts,
            policies,
            offerer,
        })
    }

    /// Signs a policy and sends it to all members.
    pub async fn set(&self, text: &str) -> Outcome<AclAnswer> {
        let issuer = self.parts.issuer()?;
        let policy = NetworkPolicy::parse(text).map_err(|e| {
            Failure::usage(format!("the policy is refused: {}", p2pvm_host::chain(&e)))
        })?;
        let version = match self.parts.notices.policy() {
            None => 1,
            Some(standing) => standing.version().checked_add(1).ok_or_else(|| {
                Failure::refused(
                    "the policy that stands has used up the version numbers: revoke \
                    the delegate who signed it",
                )
            })?,
        };
        let signed = SignedPolicy::issue(
            &issuer,
            self.parts.network.id,
            version,
            UnixTime::now(),
            text,
        )
        .map_err(refused)?;
        let told = self
            .parts
            .spread
            .publish(Notice::Policy(Box::new(signed)))
            .map_err(refused)?;
        // It is in force here when this returns.
        self.policies.apply();
        self.parts
            .book
            .find_names(self.policies.mentioned(), &self.parts.addresses)
            .await;
        let warnings = self.unknown_names(&policy).await;
        Ok(AclAnswer {
            default: policy.default.to_string(),
            rules: policy.rules.len(),
            told,
            version,
            warnings,
        })
    }

    /// A warning for each name in the document that no member and no VM has.
    async fn unknown_names(&self, policy: &NetworkPolicy) -> Vec<String> {
        let certificates: Vec<_> = self
            .parts
            .control
            .peers()
            .into_iter()
            .map(|p| p.member)
            .chain([self.parts.me()])
            .collect();
        let certificates: Vec<_> = certificates
            .into_iter()
            .filter_map(|m| self.parts.control.certificate(m))
            .collect();
        let mut warnings = BTreeSet::new();
        let mut selectors: Vec<Selector> = Vec::new();
        policy
            .rules
            .iter()
            .for_each(|rule| selectors.extend(rule.from.iter().chain(&rule.to).cloned()));
        policy
            .routes
            .iter()
            .for_each(|route| selectors.extend(route.by.iter().cloned()));
        for selector in &selectors {
            match selector {
                Selector::Group(group)
                    if !certificates.iter().any(|c| c.groups().contains(group)) =>
                {
                    warnings.insert(format!(
                        "no member known here is in the group '{group}' \
                        (invite with --group {group})"
                    ));
                }
                Selector::Member(name) if !certificates.iter().any(|c| c.name() == name) => {
                    warnings.insert(format!("no member known here is named '{name}'"));
                }
                Selector::Vm(name)
                    if matches!(
                        self.parts.addresses.resolve_name(name, NameKind::Vm).await,
                        Ok(None)
                    ) =>
                {
                    warnings.insert(format!("there is no VM named '{name}'"));
                }
                _ => {}
            }
        }
        warnings.into_iter().collect()
    }

    pub fn show(&self) -> AclShow {
        let standing = self.policies.standing();
        AclShow {
            version: standing.as_ref().map(|(signed, _)| signed.version()),
            text: standing
                .as_ref()
                .map(|(signed, _)| signed.text().to_owned()),
            signed_by: standing.as_ref().map(|(signed, _)| {
                signed
                    .delegate()
                    .map_or("root".to_owned(), |d| self.parts.name_of(d))
            }),
            signed_at: standing.as_ref().map(|(signed, _)| {
                let at = std::time::UNIX_EPOCH + Duration::from_secs(signed.at().0);
                humantime::format_rfc3339_seconds(at).to_string()
            }),
            denied_here: self.parts.plane.denied(),
        }
    }
}

fn refused(refusal: Refusal) -> Failure {
    Failure::refused(format!("the policy is refused: {refusal}"))
}
