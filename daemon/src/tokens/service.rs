//! Makes, keeps and reads tokens, with this member's key.

use super::{
    kept::{KeptTokens, id_of},
    shares::Shares,
    taken::TakenBack,
    users::Users,
};
use crate::{failure::OrFailure, layout::Layout, parts::Parts};
use p2pvm_api::{CreateToken, Failure, Outcome, PassToken, TokenRemoved, TokenState, TokenView};
use p2pvm_authority::{
    Amounts, Grant, MAX_LIFE, Principal, Resource, Revocation, Right, Rights, Serial, Token,
};
use p2pvm_overlay::{MemberId, UnixTime, VmId};
use p2pvm_vm_manager::{BitRate, directory::Directory};
use std::{sync::Arc, time::Duration};

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
/// How long after its end a token that this member gave stays in the list.
const REMEMBERED: Duration = Duration::from_secs(7 * 86400);

/// The tokens of this member.
pub(crate) struct Tokens {
    parts: Arc<Parts>,
    directory: Directory,
    /// The tokens that this member was given, and shows.
    kept: KeptTokens,
    /// The tokens that this member gave.
    given: KeptTokens,
    taken: TakenBack,
    /// How much of this host members with tokens for it take.
    pub(crate) shares: Arc<Shares>,
    pub(crate) users: Users,
}

impl Tokens {
    pub(crate) fn new(parts: Arc<Parts>, layout: &Layout) -> Arc<Self> {
        Arc::new(Self {
            directory: Directory::new(parts.records.clone()),
            kept: KeptTokens::open(layout.tokens()),
            given: KeptTokens::open(layout.given_tokens()),
            taken: TakenBack::open(layout.revoked_tokens()),
            shares: Arc::default(),
            users: Users::open(layout.users(), layout.user_accounts()),
            parts,
        })
    }

    /// Signs a token.
    pub async fn create(&self, r: &CreateToken) -> Outcome<TokenView> {
        let rights = rights_on(r)?;
        let to = self.audience(&r.to).await?;
        let resource = match &r.vm {
            Some(vm) => Resource::Vm(self.vm(vm).await?),
            None => Resource::Host(self.parts.me()),
        };
        let grant = Grant {
            amounts: Amounts {
                cpus: r.cpus,
                memory_mib: r.memory_mib,
                disk_bytes: r.disk_bytes,
                bits_per_second: r.bits_per_second,
            },
            ..grant(resource, rights, to, end_after(r.seconds)?)
        };
        let token = Token::issue(self.parts.identity.keys(), grant);
        self.note_given(&token)?;
        Ok(self.view(&token).await)
    }

    /// The key of a member, or of a user.
    async fn audience(&self, text: &str) -> Outcome<MemberId> {
        match self.users.audience(text) {
            Some(user) => user.map(MemberId),
            None => self.parts.resolve_member(text).await,
        }
    }

    /// Keeps a token that this member gave, so that it can be listed and revoked.
    fn note_given(&self, token: &Token) -> Outcome<()> {
        let now = UnixTime::now().0;
        self.given
            .drop_ended_before(now.saturating_sub(REMEMBERED.as_secs()));
        self.given.add(token)
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
        let to = self.audience(&r.to).await?;
        let until = r.seconds.map_or(Ok(token.until()), end_after)?;
        let grant = grant(token.resource(), may, to, until);
        let passed = token.pass_on(self.parts.identity.keys(), grant);
        let passed = passed.ok_or_else(|| {
            Failure::refused("the token has been passed on as often as a token can be")
        })?;
        self.note_given(&passed)?;
        Ok(self.view(&passed).await)
    }

    /// A token in words.
    pub async fn show(&self, text: &str) -> Outcome<TokenView> {
        Ok(self.view(&read(text)?).await)
    }

    /// Keeps a token that was given to this member.
    pub async fn add(&self, text: &str) -> Outcome<TokenView> {
        let token = read(text)?;
        if self.users.name_of(token.audience()).is_none() {
            self.is_ours(&token)?;
        }
        if token.until() <= UnixTime::now().0 {
            return Err(Failure::refused("the token has expired: ask for a new one"));
        }
        self.kept.add(&token)?;
        Ok(self.view(&token).await)
    }

    /// The tokens that this member was given and keeps, then those that it gave.
    pub async fn list(&self) -> Vec<TokenView> {
        let (kept, mut given) = (self.kept.all(), self.given.all());
        given.retain(|token| self.kept.get(&id_of(token)).is_none());
        let mut views = Vec::new();
        for token in kept.iter().chain(&given) {
            views.push(self.view(token).await);
        }
        views
    }

    /// A token by its id in the list, or from its text.
    pub(super) fn find(&self, text: &str) -> Outcome<Token> {
        let id = text.trim();
        match self.given.get(id).or_else(|| self.kept.get(id)) {
            Some(token) => Ok(token),
            None if id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                Err(Failure::not_found(format!(
                    "no token '{id}' is known here: see 'p2pvm token list', or give the token \
                     itself"
                )))
            }
            None => read(text),
        }
    }

    pub(super) fn keep_revocation(
        &self,
        resource: Resource,
        revocation: Revocation,
    ) -> Outcome<()> {
        self.taken.drop_ended(UnixTime::now().0);
        self.taken.add(resource, revocation)
    }

    /// Forgets a revocation that has no effect.
    pub(super) fn drop_revocation(&self, serial: &Serial) {
        self.taken.remove(serial);
    }

    /// The revocations that this member signed, of tokens that have not ended.
    pub(super) fn revocations(&self) -> Vec<(Resource, Revocation)> {
        self.taken.drop_ended(UnixTime::now().0);
        self.taken.all()
    }

    /// Whether this member revoked a link.
    pub(crate) fn has_revoked(&self, serial: &Serial) -> bool {
        self.taken.has(serial)
    }

    /// Forgets a token.
    pub fn remove(&self, id: &str) -> Outcome<TokenRemoved> {
        if self.kept.remove(id)? {
            let removed = id.to_owned();
            return Ok(TokenRemoved { removed });
        }
        if self.given.get(id).is_some() {
            return Err(Failure::refused(format!(
                "this member gave the token '{id}', and the member that has it could go on using \
                 it: take it back with 'p2pvm token revoke {id}'"
            )));
        }
        Err(Failure::not_found(format!(
            "no token '{id}' is kept here: see 'p2pvm token list'"
        )))
    }

    /// The kept tokens to show with a request about a VM, those first that are valid longest.
    pub async fn for_vm(&self, name: &str) -> Vec<Token> {
        if self.kept.all().is_empty() {
            return Vec::new();
        }
        let vm = self.vm(name).await;
        vm.map_or_else(|_| Vec::new(), |vm| self.for_resource(Resource::Vm(vm)))
    }

    /// The kept tokens to show with a request for a new VM on another host.
    pub fn for_host(&self, host: MemberId) -> Vec<Token> {
        self.for_resource(Resource::Host(host))
    }

    fn for_resource(&self, resource: Resource) -> Vec<Token> {
        let (mut kept, now) = (self.kept.all(), UnixTime::now().0);
        kept.retain(|token| token.until() > now && token.resource() == resource);
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
            "the token was given to {}: only that member can use it or pass it on; if it is a \
             user's, name the user here with 'p2pvm user add'",
            self.audience_name(to.0)
        )))
    }

    fn audience_name(&self, key: Principal) -> String {
        let user = self.users.name_of(key);
        user.unwrap_or_else(|| self.parts.name_of(MemberId(key)))
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
        let links = token.links();
        let (state, note) = if token.until() <= now {
            (TokenState::Expired, Some("it has expired"))
        } else if links.iter().any(|link| self.has_revoked(&link.serial)) {
            (TokenState::Revoked, Some("it was revoked"))
        } else if links.iter().any(|link| link.grant.from > now) {
            (TokenState::Early, Some("it is not valid yet"))
        } else {
            (TokenState::Valid, None)
        };
        let me = self.parts.me().0;
        TokenView {
            from: links.iter().map(|link| name(link.issuer)).collect(),
            given: links.iter().any(|link| link.issuer == me),
            id: id_of(token),
            may: token.rights().iter().map(|r| r.word().to_owned()).collect(),
            note: note.map(str::to_owned),
            on: self.resource(token.resource()).await + &bounds(&token.amounts()),
            state,
            to: self.audience_name(token.audience()),
            token: token.to_string(),
            until: until.map_or_else(
                || "never".to_owned(),
                |at| humantime::format_rfc3339_seconds(at).to_string(),
            ),
        }
    }

    /// What a token is about, in words.
    pub(super) async fn resource(&self, resource: Resource) -> String {
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

/// The amounts that a token allows, in words.
fn bounds(amounts: &Amounts) -> String {
    let all = [
        amounts.cpus.map(|cpus| format!("{cpus} processors")),
        amounts.memory_mib.map(|mib| format!("{mib} MiB of memory")),
        amounts
            .disk_bytes
            .map(|bytes| format!("{} MiB of disk", bytes >> 20)),
        amounts
            .bits_per_second
            .map(|bits| format!("{} for each VM", BitRate(bits))),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    if all.is_empty() {
        return String::new();
    }
    format!(" (at most {})", all.join(", "))
}

/// The rights of a new token: those on VMs for a VM, the right to make VMs for this host.
fn rights_on(r: &CreateToken) -> Outcome<Rights> {
    let (rights, create) = (rights(&r.may)?, [Right::Create].into_iter().collect());
    let has_amounts = r.cpus.is_some()
        || r.memory_mib.is_some()
        || r.disk_bytes.is_some()
        || r.bits_per_second.is_some();
    let rate = r.bits_per_second.map(BitRate);
    if rate.is_some_and(|rate| rate.0 == 0 || !rate.is_possible()) {
        return Err(Failure::usage("the bandwidth is 64 kbit to 1000 Gbit"));
    }
    let why = match &r.vm {
        Some(_) if rights.has(Right::Create) => {
            "'run' is a right on a host: leave --vm out and give --host"
        }
        Some(_) if rights.is_empty() => "the token names no right, such as 'start'",
        Some(_) if has_amounts => {
            "processors, memory, disk and bandwidth are bounds of a token for a host (--host)"
        }
        Some(_) => return Ok(rights),
        None if rights.within(create) => return Ok(create),
        None => "a token for a host gives the right to 'run' VMs of one's own on it and no other",
    };
    Err(Failure::usage(why))
}

fn read(text: &str) -> Outcome<Token> {
    text.parse().map_err(|e| Failure::usage(format!("{e}")))
}

fn rights(words: &[String]) -> Outcome<Rights> {
    let rights: Result<Rights, _> = words.iter().map(|word| word.parse::<Right>()).collect();
    rights.map_err(|e| Failure::usage(e.to_string()))
}
