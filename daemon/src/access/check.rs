//! `p2pvm acl check`: the policy's decision about a conversation, and its reason.

use super::service::Access;
use p2pvm_api::{AclCheck, AclVerdict, Failure, Outcome};
use p2pvm_dhcp::{NameEntry, NameKind, Subject};
use p2pvm_host::chain;
use p2pvm_overlay::{
    MemberId,
    membership::{
        policy::{Action, AddressOwner, Party, Reason, Traffic},
        valid_name,
    },
    plane::Directory,
};
use std::net::IpAddr;

/// One end of a conversation, with its name for people.
struct End {
    party: Party,
    text: String,
    /// The member that would enforce the rules for it.
    host: Option<MemberId>,
}

impl End {
    fn new(party: Party, host: Option<MemberId>) -> Self {
        Self {
            text: describe(&party),
            party,
            host,
        }
    }
}

fn unavailable(text: &str, error: &p2pvm_dhcp::Error) -> Failure {
    Failure::timed_out(format!(
        "'{text}' cannot be looked up now: {}",
        chain(error)
    ))
}

impl Access {
    /// The policy's decision about a conversation, and its reason.
    pub async fn check(&self, question: &AclCheck) -> Outcome<AclVerdict> {
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
        let receiver = to.host.map_or_else(
            || "the receiver".to_owned(),
            |host| self.parts.name_of(host),
        );
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

    /// Resolves one end of a question: an address, a member or a VM.
    async fn end(&self, text: &str) -> Outcome<End> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            return self.end_at(text, addr).await;
        }
        let (member, vm) = match text.split_once(':') {
            Some(("member", name)) => (Some(name), None),
            Some(("vm", name)) => (None, Some(name)),
            _ => (Some(text), Some(text)),
        };
        let member = match member {
            Some(name) => self.parts.resolve_member(name).await.ok(),
            None => None,
        };
        let named = match vm {
            Some(name) if valid_name(name) => self
                .parts
                .addresses
                .resolve_name(name, NameKind::Vm)
                .await
                .map_err(|e| unavailable(text, &e))?,
            _ => None,
        };
        match (member, named) {
            (Some(_), Some(_)) => Err(Failure::usage(format!(
                "'{text}' is a member and a VM: write member:{text} or vm:{text}"
            ))),
            (Some(id), None) => Ok(self.end_of_member(id)),
            (None, Some(named)) => self.end_of_vm(text, vm, &named).await,
            (None, None) => Err(Failure::not_found(format!(
                "'{text}' is no member, VM or address known here: see 'p2pvm peers' and 'p2pvm vm \
                    list'"
            ))),
        }
    }

    async fn end_at(&self, text: &str, addr: IpAddr) -> Outcome<End> {
        let holder = self
            .parts
            .addresses
            .resolve(addr)
            .await
            .map_err(|e| unavailable(text, &e))?;
        if let Some(holder) = &holder {
            self.parts.book.learn(addr, holder);
        }
        let party = Party {
            addr,
            owner: self.parts.book.owner_of(&addr),
        };
        let host = holder.map(|h| h.member).or_else(|| (self.offerer)(&addr));
        Ok(End::new(party, host))
    }

    fn end_of_member(&self, id: MemberId) -> End {
        let addr = IpAddr::V6(self.parts.network.member_v6(id));
        let addr = self
            .parts
            .address_of(id)
            .and_then(|a| a.parse().ok())
            .unwrap_or(addr);
        let party = Party {
            addr,
            owner: self.parts.book.member(id),
        };
        End::new(party, Some(id))
    }

    async fn end_of_vm(&self, text: &str, name: Option<&str>, named: &NameEntry) -> Outcome<End> {
        let Subject::Vm(id) = named.subject else {
            return Err(Failure::not_found(format!("'{text}' is no VM")));
        };
        let addr = IpAddr::V4(named.v4);
        let host = self
            .parts
            .addresses
            .resolve(addr)
            .await
            .map_err(|e| unavailable(text, &e))?
            .map(|h| h.member);
        // The owner of the name's record has the name: receivers go by that too.
        let party = Party {
            addr,
            owner: AddressOwner::Vm {
                id,
                name: name.map(str::to_ascii_lowercase),
            },
        };
        Ok(End::new(party, host))
    }
}

fn describe(party: &Party) -> String {
    match &party.owner {
        AddressOwner::Member { name, groups, .. } if groups.is_empty() => {
            format!("member {name} ({}, in no group)", party.addr)
        }
        AddressOwner::Member { name, groups, .. } => {
            format!(
                "member {name} ({}, in {})",
                party.addr,
                groups.iter().collect::<Vec<_>>().join(", ")
            )
        }
        AddressOwner::Vm {
            name: Some(name), ..
        } => format!("VM {name} ({})", party.addr),
        AddressOwner::Vm { id, name: None } => format!("VM {} ({})", id.short(), party.addr),
        AddressOwner::Unknown => format!("{}", party.addr),
    }
}
