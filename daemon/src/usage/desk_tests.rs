//! Two members' desks over a fabric inside one process.

use super::*;
use crate::usage::meter::Amount;
use p2pvm_authority::{Line, Usage};
use p2pvm_overlay::fabric::memory::MemoryNet;
use tempfile::TempDir;

const NOW: UnixTime = UnixTime(1_800_000_000);
const WEB: VmId = VmId([7; 32]);
const SIZE: Size = Size {
    cpus: 1,
    memory_mib: 512,
    disk_mib: 0,
};

/// When the VM of [`OneVm`] was made.
const CREATED: UnixTime = UnixTime(1_780_000_000);

/// Records with one VM.
struct OneVm(Option<MemberId>);

#[async_trait]
impl Definitions for OneVm {
    async fn find(&self, vm: VmId) -> Result<Option<(FoundVm, Option<MemberId>)>, String> {
        let web = FoundVm {
            known: KnownVm {
                name: "web".to_owned(),
                size: SIZE,
            },
            created: CREATED,
        };
        // As a look-up in the network: others come in between.
        tokio::task::yield_now().await;
        Ok((vm == WEB).then_some((web, self.0)))
    }
}

struct Members {
    net: MemoryNet,
    dir: TempDir,
    host: Arc<Desk>,
    owner: Arc<Desk>,
}

impl Members {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let net = MemoryNet::new(Duration::from_millis(5));
        let owner = Arc::new(Identity::generate());
        let whose = Some(owner.member_id());
        Self {
            host: desk(&net, &dir, Arc::new(Identity::generate()), whose),
            owner: desk(&net, &dir, owner, whose),
            net,
            dir,
        }
    }

    /// A daemon that starts with what the last one kept.
    fn again(&self, before: &Desk) -> Arc<Desk> {
        let owner = Some(self.owner.me());
        desk(&self.net, &self.dir, before.identity.clone(), owner)
    }

    /// The owner's VM uses this host for a minute until `now`.
    fn use_host(&self, now: UnixTime) {
        let amount = Amount {
            owner: self.owner.me(),
            vm: Some((WEB, SIZE)),
            used: Usage {
                cpu_ms: 1000,
                ..Usage::default()
            },
        };
        let mut state = self.host.state();
        state.ledger.note(self.host.me(), (now, 60), &[amount]);
    }

    /// What the owner has confirmed to have used, and until when.
    fn confirmed(desk: &Desk, host: MemberId) -> (u64, Option<UnixTime>) {
        let state = desk.state();
        let Some(book) = state.books.get(&host) else {
            return (0, None);
        };
        let rows = book.sums.since(UnixTime(0));
        (
            rows.values().map(|used| used.cpu_ms).sum(),
            book.confirmed(),
        )
    }

    /// Sends terms of the host, signed by `signer`, after the pace of the sender has passed.
    async fn say(&self, signer: &Identity, terms: &Terms) -> Reply {
        self.owner.state().seen.clear();
        let receipt = Receipt::sign(signer.keys(), terms);
        let sender = self.host.me();
        self.owner.answer(sender, &receipt.to_bytes(), NOW).await
    }

    fn terms(&self) -> Terms {
        Terms {
            host: self.host.me(),
            owner: self.owner.me(),
            seq: 1,
            from: UnixTime(NOW.0 - 600),
            to: UnixTime(NOW.0 - 300),
            lines: vec![Line {
                vm: Some(WEB),
                used: Usage::default(),
            }],
        }
    }
}

fn desk(
    net: &MemoryNet,
    dir: &TempDir,
    identity: Arc<Identity>,
    owner: Option<MemberId>,
) -> Arc<Desk> {
    let member = identity.member_id();
    let files = Files::new(dir.path().join(member.short()));
    Desk::open(net.add(member), identity, Arc::new(OneVm(owner)), files)
}

#[tokio::test]
async fn a_host_and_an_owner_confirm_what_was_used() {
    let members = Members::start();
    let (host, owner) = (members.host.me(), members.owner.me());
    let now = UnixTime::now();
    members.use_host(now);
    members.host.settle(now).await;
    assert_eq!(Members::confirmed(&members.owner, host), (1000, Some(now)));
    {
        let state = members.host.state();
        let account = state.ledger.accounts.of(owner).unwrap();
        assert_eq!((account.confirmed(), account.refused()), (Some(now), None));
        assert!(state.ledger.accounts.waiting().is_empty());
    }
    // Both keep it.
    let again = members.again(&members.owner);
    assert_eq!(Members::confirmed(&again, host), (1000, Some(now)));
    let again = members.again(&members.host);
    assert!(again.files.read::<Proofs>(&book::of_owner(owner)).is_some());
    assert_eq!(again.state().ledger.sums.since(now).len(), 1);
}

#[tokio::test]
async fn a_killed_host_sends_the_same_receipt_again_and_it_counts_once() {
    let members = Members::start();
    let (host, owner) = (members.host.me(), members.owner.me());
    let now = UnixTime::now();
    members.use_host(now);
    members.host.settle(now).await;
    // Its last file is that from before the answer.
    let again = members.again(&members.host);
    assert_eq!(again.state().ledger.accounts.waiting().len(), 1);
    members.owner.state().seen.clear();
    again.settle(now.plus(1)).await;
    assert_eq!(Members::confirmed(&members.owner, host), (1000, Some(now)));
    let state = again.state();
    let account = state.ledger.accounts.of(owner).unwrap();
    assert_eq!(account.confirmed(), Some(now));
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_away_gets_its_receipt_later() {
    let members = Members::start();
    let (host, owner) = (members.host.me(), members.owner.me());
    let now = UnixTime::now();
    members.net.set_cut(host, owner, true);
    members.use_host(now);
    members.host.settle(now).await;
    assert_eq!(Members::confirmed(&members.owner, host), (0, None));
    members.net.set_cut(host, owner, false);
    members.host.settle(now.plus(1)).await;
    assert_eq!(
        Members::confirmed(&members.owner, host),
        (0, None),
        "it is not asked again at once"
    );
    members.host.state().tries.clear();
    members.host.settle(now.plus(2)).await;
    assert_eq!(Members::confirmed(&members.owner, host), (1000, Some(now)));
}

#[tokio::test]
async fn a_member_of_the_previous_version_leaves_the_receipt_waiting() {
    let members = Members::start();
    let owner = members.owner.me();
    members.net.add(owner);
    members.use_host(NOW);
    members.host.settle(NOW).await;
    let state = members.host.state();
    let account = state.ledger.accounts.of(owner).unwrap();
    assert_eq!((account.confirmed(), account.refused()), (None, None));
    assert_eq!(state.ledger.accounts.waiting().len(), 1);
    assert!(state.tries.contains_key(&owner));
}

#[tokio::test]
async fn each_lie_is_refused_with_its_reason_and_leaves_nothing() {
    type Spoil = fn(&mut Terms);
    let members = Members::start();
    let host = members.host.identity.clone();
    let spoilt: [(&str, Spoil); 8] = [
        ("another host", |t| t.host = MemberId([9; 32])),
        ("another member", |t| t.owner = MemberId([9; 32])),
        ("in the future", |t| t.to = NOW.plus(3600)),
        ("shorter than a minute", |t| t.to = t.from.plus(5)),
        ("there is no VM", |t| t.lines[0].vm = Some(VmId([8; 32]))),
        ("more processor time", |t| {
            t.lines[0].used.cpu_ms = 400_000;
        }),
        ("more memory", |t| {
            // The VM is not as old as that.
            t.from = UnixTime(NOW.0 - 300 * 86_400);
            t.lines[0].used.memory_mib_s = 512 * 299 * 86_400;
        }),
        ("damaged", |t| t.lines = vec![t.lines[0]; 2]),
    ];
    for (said, spoil) in spoilt {
        let mut lie = members.terms();
        spoil(&mut lie);
        match members.say(&host, &lie).await {
            Reply::Refused(why) => assert!(why.contains(said), "{said}: {why}"),
            other => panic!("{said}: {other:?}"),
        }
    }
    let forger = Identity::generate();
    let reply = members.say(&forger, &members.terms()).await;
    assert!(
        matches!(&reply, Reply::Refused(why) if why.contains("forged")),
        "{reply:?}"
    );
    assert!(members.owner.state().books.is_empty());
    let reply = members.say(&host, &members.terms()).await;
    assert!(matches!(reply, Reply::Confirmed(_)), "{reply:?}");
    let overlapping = Terms {
        seq: 2,
        ..members.terms()
    };
    let reply = members.say(&host, &overlapping).await;
    assert!(
        matches!(&reply, Reply::Refused(why) if why.contains("previous")),
        "{reply:?}"
    );
    let state = members.owner.state();
    let book = &state.books[&host.member_id()];
    assert!(book.refused().is_some_and(|why| why.contains("previous")));
}

#[tokio::test]
async fn a_vm_of_another_owner_cannot_be_charged() {
    let mut members = Members::start();
    for owner in [None, Some(MemberId([9; 32]))] {
        let identity = members.owner.identity.clone();
        members.owner = desk(&members.net, &members.dir, identity, owner);
        let reply = members.say(&members.host.identity, &members.terms()).await;
        assert!(
            matches!(&reply, Reply::Refused(why) if why.contains("not this member's")),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn a_flood_is_looked_at_once_and_makes_no_book() {
    let members = Members::start();
    let host = members.host.me();
    for n in 0..1000u32 {
        let reply = members.owner.answer(host, &n.to_be_bytes(), NOW).await;
        assert_eq!(matches!(reply, Reply::Refused(_)), n == 0, "{reply:?}");
    }
    // Of many members at once, too.
    for n in 0..2 * MAX_PACED as u32 {
        let mut other = [1; 32];
        other[..4].copy_from_slice(&n.to_be_bytes());
        members.owner.answer(MemberId(other), &[], NOW).await;
    }
    let state = members.owner.state();
    assert!(state.seen.len() <= MAX_PACED && state.books.is_empty());
}

#[tokio::test]
async fn hosts_that_send_at_once_get_no_more_books_than_there_are() {
    let members = Members::start();
    let (owner, before) = (&members.owner, MAX_BOOKS - 1);
    for n in 0..before {
        let book = Book::default();
        owner.state().books.insert(MemberId([n as u8; 32]), book);
    }
    let replies = futures::future::join_all((0..3).map(|_| async {
        let host = Identity::generate();
        let terms = Terms {
            host: host.member_id(),
            ..members.terms()
        };
        let receipt = Receipt::sign(host.keys(), &terms).to_bytes();
        owner.answer(terms.host, &receipt, NOW).await
    }));
    let replies = replies.await;
    let confirmed = |reply: &&Reply| matches!(reply, Reply::Confirmed(_));
    assert_eq!(replies.iter().filter(confirmed).count(), 1, "{replies:?}");
    assert_eq!(owner.state().books.len(), MAX_BOOKS);
}
