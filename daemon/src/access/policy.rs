//! The network's policy in the daemon: puts the one that stands in force, signs a new one, and says
//! what it does to a conversation. Enforcing is the packet plane's, deciding the document's,
//! spreading the notices'.

use crate::{Daemon, parts::Parts};
use p2pvm_api::{AclAnswer, AclCheck, AclShow, AclVerdict, Failure, Outcome};
use p2pvm_dhcp::{NameKind, Subject};
use p2pvm_overlay::{
    MemberId, UnixTime,
    membership::{
        NetworkPolicy, Notice, Refusal, SignedPolicy,
        policy::{Action, Party, Reason, Selector, Traffic, Who},
    },
    plane::Directory,
};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How often it is looked whether the VMs that rules mention are still who they were.
const NAMES_EVERY: Duration = Duration::from_secs(60);

/// The policy that is in force here.
pub struct Policies {
    parts: Arc<Parts>,
    standing: Mutex<Option<(SignedPolicy, Arc<NetworkPolicy>)>>,
    /// Whether nothing is let in, since nobody has said yet whether there is a policy.
    closed: AtomicBool,
}

impl Policies {
    /// Puts the policy that was known when the daemon last ran in force, before anything arrives. A
    /// member that has not heard of any lets nothing in until it has met another; a founder, which
    /// would know, does not wait.
    pub fn start(parts: Arc<Parts>, founder: bool) -> Arc<Self> {
        let closed = !founder && !parts.notices.heard();
        if closed {
            parts.plane.await_policy();
        }
        let policies = Arc::new(Self {
            parts,
            standing: Mutex::default(),
            closed: closed.into(),
        });
        policies.apply();
        policies
    }

    /// The policy that stands.
    pub fn standing(&self) -> Option<(SignedPolicy, Arc<NetworkPolicy>)> {
        self.standing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the policy lets an echo request through, as far as it is known here.
    pub fn lets_probe(&self, from: &Party, to: &Party) -> bool {
        let Ok(echo) = "icmp".parse::<Traffic>() else {
            return true;
        };
        self.standing()
            .is_none_or(|(_, policy)| policy.decide(from, to, echo).action == Action::Allow)
    }

    /// Puts the policy that stands in force; whether it is another than before.
    pub(crate) fn apply(&self) -> bool {
        let signed = self.parts.notices.policy();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let opens = (signed.is_some() || self.parts.notices.heard())
            && self.closed.swap(false, Ordering::AcqRel);
        if !opens && standing.as_ref().map(|(signed, _)| signed) == signed.as_ref() {
            return false;
        }
        *standing = signed.and_then(|signed| {
            let policy = Arc::new(signed.policy()?);
            Some((signed, policy))
        });
        let directory: Arc<dyn Directory> = self.parts.book.clone();
        self.parts.plane.set_policy(
            standing
                .as_ref()
                .map(|(_, policy)| (policy.clone(), directory)),
        );
        if let Some((signed, policy)) = &*standing {
            tracing::info!(
                version = signed.version(), rules = policy.rules.len(), default = %policy.default,
                "policy in force"
            );
        }
        true
    }

    fn mentioned(&self) -> BTreeSet<String> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        standing
            .iter()
            .flat_map(|(_, policy)| policy.vm_names())
            .map(str::to_owned)
            .collect()
    }

    /// Follows what the members tell, until the daemon ends.
    pub async fn run(&self) {
        let mut changes = self.parts.notices.changes();
        loop {
            self.parts
                .book
                .find_names(self.mentioned(), &self.parts.addresses)
                .await;
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.apply();
                }
                () = self.parts.book.doubted() => {}
                () = tokio::time::sleep(NAMES_EVERY) => {}
            }
        }
    }
}

/// One end of a question, with the words for it.
struct End {
    party: Party,
    text: String,
    /// The member that would enforce the rules for it.
    host: Option<MemberId>,
}

impl Daemon {
    /// Signs a policy and tells everybody.
    pub async fn set_policy(&self, text: &str) -> Outcome<AclAnswer> {
        let issuer = self.issuer()?;
        let policy = NetworkPolicy::parse(text)
            .map_err(|e| Failure::usage(format!("the policy is refused: {e}")))?;
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
        // In force here when this returns.
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

    /// What the document names and nobody has: most likely misspelt.
    async fn unknown_names(&self, policy: &NetworkPolicy) -> Vec<String> {
        let certificates: Vec<_> = self
            .parts
            .control
            .peers()
            .into_iter()
            .map(|p| p.member)
            .chain([self.me()])
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

    /// The policy that stands here.
    pub fn show_policy(&self) -> AclShow {
        let standing = self.policies.standing();
        AclShow {
            version: standing.as_ref().map(|(signed, _)| signed.version()),
            text: standing
                .as_ref()
                .map(|(signed, _)| signed.text().to_owned()),
            signed_by: standing.as_ref().map(|(signed, _)| {
                signed
                    .delegate()
                    .map_or("root".to_owned(), |d| self.name_of(d))
            }),
            signed_at: standing.as_ref().map(|(signed, _)| {
                let at = std::time::UNIX_EPOCH + Duration::from_secs(signed.at().0);
                humantime::format_rfc3339_seconds(at).to_string()
            }),
            denied_here: self.parts.plane.denied(),
        }
    }

    async fn end(&self, text: &str) -> Outcome<End> {
        let unavailable = |e: p2pvm_dhcp::Error| {
            Failure::timed_out(format!(
                "'{text}' cannot be looked up now: {}",
                p2pvm_host::chain(&e)
            ))
        };
        let addresses = &self.parts.addresses;
        if let Ok(addr) = text.parse::<IpAddr>() {
            let holder = addresses.resolve(addr).await.map_err(unavailable)?;
            if let Some(holder) = &holder {
                self.parts.book.learn(addr, holder);
            }
            let party = Party {
                addr,
                who: self.parts.book.who(&addr),
            };
            let host = holder
                .map(|h| h.member)
                .or_else(|| self.subnets.offerer(&addr));
            return Ok(End {
                text: self.describe(&party),
                party,
                host,
            });
        }
        let (member, vm) = match text.split_once(':') {
            Some(("member", name)) => (Some(name), None),
            Some(("vm", name)) => (None, Some(name)),
            _ => (Some(text), Some(text)),
        };
        let member = match member {
            Some(name) => self.resolve_member(name).await.ok(),
            None => None,
        };
        let named = match vm {
            Some(name) if p2pvm_overlay::membership::valid_name(name) => addresses
                .resolve_name(name, NameKind::Vm)
                .await
                .map_err(unavailable)?,
            _ => None,
        };
        match (member, named) {
            (Some(_), Some(_)) => Err(Failure::usage(format!(
                "'{text}' is a member and a VM: write member:{text} or vm:{text}"
            ))),
            (Some(id), None) => {
                let addr = IpAddr::V6(self.parts.network.member_v6(id));
                let addr = self
                    .address_of(id)
                    .and_then(|a| a.parse().ok())
                    .unwrap_or(addr);
                let party = Party {
                    addr,
                    who: self.parts.book.member(id),
                };
                Ok(End {
                    text: self.describe(&party),
                    party,
                    host: Some(id),
                })
            }
            (None, Some(named)) => {
                let Subject::Vm(id) = named.subject else {
                    return Err(Failure::not_found(format!("'{text}' is no VM")));
                };
                let addr = IpAddr::V4(named.v4);
                let host = addresses
                    .resolve(addr)
                    .await
                    .map_err(unavailable)?
                    .map(|h| h.member);
                // The name record says whose the name is: that is what receivers go by too.
                let party = Party {
                    addr,
                    who: Who::Vm {
                        id,
                        name: vm.map(str::to_ascii_lowercase),
                    },
                };
                Ok(End {
                    text: self.describe(&party),
                    party,
                    host,
                })
            }
            (None, None) => Err(Failure::not_found(format!(
                "'{text}' is no member, VM or address known here: see 'p2pvm peers' and 'p2pvm vm \
                    list'"
            ))),
        }
    }

    fn describe(&self, party: &Party) -> String {
        match &party.who {
            Who::Member { name, groups, .. } if groups.is_empty() => {
                format!("member {name} ({}, in no group)", party.addr)
            }
            Who::Member { name, groups, .. } => {
                format!(
                    "member {name} ({}, in {})",
                    party.addr,
                    groups.iter().collect::<Vec<_>>().join(", ")
                )
            }
            Who::Vm {
                name: Some(name), ..
            } => format!("VM {name} ({})", party.addr),
            Who::Vm { id, name: None } => format!("VM {} ({})", id.short(), party.addr),
            Who::Unknown => format!("{}", party.addr),
        }
    }

    /// What the policy does to a conversation, and why.
    pub async fn check_policy(&self, question: &AclCheck) -> Outcome<AclVerdict> {
        let traffic: Traffic = question.traffic.parse().map_err(Failure::usage)?;
        let (from, to) = (
            self.end(&question.from).await?,
            self.end(&question.to).await?,
        );
        let standing = self.policies.standing();
        let (action, rule, line, why) = match &standing {
            None => (
                Action::Allow,
                None,
                None,
                "the network has no policy, so everything is allowed".to_owned(),
            ),
            Some((signed, policy)) => {
                let verdict = policy.decide(&from.party, &to.party, traffic);
                let version = signed.version();
                match verdict.reason {
                    Reason::Rule(at) => {
                        let rule = &policy.rules[at];
                        let why = format!(
                            "rule {} (line {} of policy version {version}): {rule}",
                            at + 1,
                            rule.line
                        );
                        (verdict.action, Some(at + 1), Some(rule.line), why)
                    }
                    Reason::Default => (
                        verdict.action,
                        None,
                        None,
                        format!(
                            "no rule fits, and the default of policy version {version} is {}",
                            policy.default
                        ),
                    ),
                }
            }
        };
        let receiver = to
            .host
            .map_or_else(|| "the receiver".to_owned(), |host| self.name_of(host));
        let effect = match action {
            Action::Allow => format!("{receiver} delivers it, and answers come back"),
            Action::Deny => format!("{receiver} drops it and tells nobody"),
        };
        Ok(AclVerdict {
            from: from.text,
            to: to.text,
            traffic: traffic.to_string(),
            allowed: action == Action::Allow,
            rule,
            line,
            version: standing.map(|(signed, _)| signed.version()),
            why,
            effect,
        })
    }
}

fn refused(refusal: Refusal) -> Failure {
    Failure::refused(format!("the policy is refused: {refusal}"))
}
