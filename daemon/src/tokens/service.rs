//! Makes, keeps and reads tokens, with this member's key.

use super::kept::{KeptTokens, id_of};
use crate::{failure::OrFailure, parts::Parts};
use p2pvm_api::{CreateToken, Failure, Outcome, PassToken, TokenRemoved, TokenView};
use p2pvm_authority::{Amounts, Grant, MAX_LIFE, Resource, Right, Rights, Token};
use p2pvm_overlay::{MemberId, UnixTime, VmId};
use p2pvm_vm_manager::directory::Directory;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// How far a token reaches back from its making.
/// Reason: the receiver's idea of the network's time may be a little behind.
const BACK: u64 = 60;
/// The header of a request between members that shows a token.
pub(crate) const HEADER: &str = "p2pvm-token";
/// How many tokens a request may show.
pub(crate) const MAX_SHOWN: usize = 4;

/// How long another host may take to restore a VM for this member.
/// Reason: it fetches the snapshot first.
const RESTORE_SECONDS: u64 = 12 * 60 * 60;

/// The tokens of this member.
pub(crate) struct Tokens {
    parts: Arc<Parts>,
    directory: Directory,
    kept: KeptTokens,
}

impl Tokens {
    pub(crate) fn new(parts: Arc<Parts>, dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            directory: Directory::new(parts.records.clone()),
            kept: KeptTokens::open(dir),
            parts,
        })
    }

    /// Signs a token.
    pub async fn create(&self, r: &CreateToken) -> Outcome<TokenView> {
        let rights = rights(&r.may)?;
        if rights.is_empty() {
            return Err(Failure::usage("the token names no right, such as 'start'"));
        }
        let to = self.parts.resolve_member(&r.to).await?;
        let vm = self.vm(&r.vm).await?;
        let grant = grant(Resource::Vm(vm), rights, to, end_after(r.seconds)?);
        let token = Token::issue(self.parts.identity.keys(), grant);
        Ok(self.view(&token).await)
    }

    /// Passes a token of this member on to another.
    pub async fn pass_on(&self, r: &PassToken) -> Outcome<TokenView> {
        let token = read(&r.token)?;
        let may = rights(&r.may)?;
        let may = if r.may.is_empty() {
            token.rights()
        } else {
            may
        };
        if !may.within(token.rights()) {
            return Err(Failure::refused(format!(
                "the token cannot be widened: it allows only {}",
                token.rights()
            )));
        }
        self.is_ours(&token)?;
        let to = self.parts.resolve_member(&r.to).await?;
        let until = r.seconds.map_or(Ok(token.until()), end_after)?;
        let grant = grant(token.resource(), may, to, until);
        let passed = token.pass_on(self.parts.identity.keys(), grant);
        let passed = passed.ok_or_else(|| {
            Failure::refused("the token has been passed on as often as a token can be")
        })?;
        Ok(self.view(&passed).await)
    }

    /// A token in words.
    pub async fn show(&self, text: &str) -> Outcome<TokenView> {
        Ok(self.view(&read(text)?).await)
    }

    /// Keeps a token that was given to this member.
    pub async fn add(&self, text: &str) -> Outcome<TokenView> {
        let token = read(text)?;
        self.is_ours(&token)?;
        if token.until() <= UnixTime::now().0 {
            return Err(Failure::refused("the token has expired: ask for a new one"));
        }
        self.kept.add(&token)?;
        Ok(self.view(&token).await)
    }

    /// The tokens that are kept.
    pub async fn list(&self) -> Vec<TokenView> {
        let mut views = Vec::new();
        for token in self.kept.all() {
            views.push(self.view(&token).await);
        }
        views
    }

    /// Forgets a token.
    pub fn remove(&self, id: &str) -> Outcome<TokenRemoved> {
        if self.kept.remove(id)? {
            let removed = id.to_owned();
            return Ok(TokenRemoved { removed });
        }
        Err(Failure::not_found(format!(
            "no token '{id}' is kept here: see 'p2pvm token list'"
        )))
    }

    /// The kept tokens to show with a request about a VM, those first that are valid longest.
    pub async fn for_vm(&self, name: &str) -> Vec<Token> {
        let mut kept = self.kept.all();
        let now = UnixTime::now().0;
        kept.retain(|token| token.until() > now);
        if kept.is_empty() {
            return kept;
        }
        let Ok(vm) = self.vm(name).await else {
            return Vec::new();
        };
        kept.retain(|token| token.resource() == Resource::Vm(vm));
        kept.sort_by_key(|token| std::cmp::Reverse(token.until()));
        kept.truncate(MAX_SHOWN);
        kept
    }

    /// Tokens by which `host` shows others that this member has it restore a VM: this member's own,
    /// which counts if it owns the VM or may admit members, and those that it was given.
    pub async fn to_restore(&self, name: &str, host: MemberId) -> Vec<Token> {
        let Ok(vm) = self.vm(name).await else {
            return Vec::new();
        };
        let rights = [Right::Restore].into_iter().collect();
        let until = UnixTime::now().plus(RESTORE_SECONDS).0;
        let (grant, keys) = (
            grant(Resource::Vm(vm), rights, host, until),
            self.parts.identity.keys(),
        );
        let kept = self.for_vm(name).await;
        let passed = kept.iter().filter_map(|token| token.pass_on(keys, grant));
        let mut tokens = vec![Token::issue(keys, grant)];
        tokens.extend(passed.take(MAX_SHOWN - 1));
        tokens
    }

    fn is_ours(&self, token: &Token) -> Outcome<()> {
        let to = MemberId(token.audience());
        if to == self.parts.me() {
            return Ok(());
        }
        Err(Failure::refused(format!(
            "the token was given to {}: only that member can use it or pass it on",
            self.parts.name_of(to)
        )))
    }

    /// The VM of a name or an id.
    async fn vm(&self, text: &str) -> Outcome<VmId> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let found = self.directory.resolve(text).await.or_failure()?;
        found.ok_or_else(|| {
            Failure::not_found(format!("there is no VM '{text}': see 'p2pvm vm list'"))
        })
    }

    async fn view(&self, token: &Token) -> TokenView {
        let now = UnixTime::now().0;
        let name = |key| self.parts.name_of(MemberId(key));
        let until = std::time::UNIX_EPOCH.checked_add(Duration::from_secs(token.until()));
        let note = if token.until() <= now {
            Some("it has expired".to_owned())
        } else if token.links().iter().any(|link| link.grant.from > now) {
            Some("it is not valid yet".to_owned())
        } else {
            None
        };
        TokenView {
            from: token.links().iter().map(|link| name(link.issuer)).collect(),
            id: id_of(token),
            may: token.rights().iter().map(|r| r.word().to_owned()).collect(),
            note,
            on: self.resource(token.resource()).await,
            to: name(token.audience()),
            token: token.to_string(),
            until: until.map_or_else(
                || "never".to_owned(),
                |at| humantime::format_rfc3339_seconds(at).to_string(),
            ),
        }
    }

    async fn resource(&self, resource: Resource) -> String {
        match resource {
            Resource::Vm(vm) => {
                let record = self.directory.record(vm).await;
                let name = record.ok().flatten().map(|record| record.definition.name);
                format!("vm {}", name.unwrap_or_else(|| vm.short()))
            }
            Resource::Image(hash) => {
                format!("image {}", data_encoding::HEXLOWER.encode(&hash[..6]))
            }
            Resource::Host(member) => format!("host {}", self.parts.name_of(member)),
            Resource::Network(network) => format!("network {}", network.short()),
        }
    }
}

/// The end of a token that is valid for `seconds` from now.
fn end_after(seconds: u64) -> Outcome<u64> {
    if seconds == 0 {
        return Err(Failure::usage("a token is valid for at least a second"));
    }
    if seconds > MAX_LIFE.as_secs() - BACK {
        return Err(Failure::usage(format!(
            "a token is valid for at most {}",
            humantime::format_duration(MAX_LIFE - Duration::from_secs(86400))
        )));
    }
    Ok(UnixTime::now().plus(seconds).0)
}

fn grant(resource: Resource, rights: Rights, to: MemberId, until: u64) -> Grant {
    Grant {
        resource,
        rights,
        audience: to.0,
        from: UnixTime::now().0.saturating_sub(BACK),
        until,
        amounts: Amounts::default(),
    }
}

fn read(text: &str) -> Outcome<Token> {
    text.parse().map_err(|e| Failure::usage(format!("{e}")))
}

fn rights(words: &[String]) -> Outcome<Rights> {
    let rights: Result<Rights, _> = words.iter().map(|word| word.parse::<Right>()).collect();
    rights.map_err(|e| Failure::usage(e.to_string()))
}
