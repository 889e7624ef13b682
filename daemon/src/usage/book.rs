//! The owner's side of receipts: what one host claimed and this member confirmed. A host adds to
//! its own book only, and a bounded number of bytes.

use super::sums::{Key, Sums};
use p2pvm_authority::{Receipt, ReceiptRefusal, Size, Terms};
use p2pvm_overlay::{
    MemberId, UnixTime, VmId,
    identity::{KeyPair, Signature},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many rows a book has at most, about 100 bytes each.
pub const MAX_ROWS: usize = 4096;
/// How many signed receipts are kept, and how many bytes of them.
const MAX_PROOFS: usize = 400;
const MAX_PROOF_BYTES: usize = 64 << 10;
/// How many VMs of this member a book knows.
const MAX_VMS: usize = 256;
/// How many characters of another member's reason are kept.
const MAX_REASON: usize = 200;

/// A receipt that both sides have signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The receipt with the host's signature.
    pub receipt: Receipt,
    /// The owner's signature.
    pub confirmed: Signature,
}

/// The newest proofs, within a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs(Vec<Proof>);

impl Proofs {
    /// Keeps a proof, and lets the oldest go.
    pub fn add(&mut self, proof: Proof) {
        self.0.push(proof);
        let (mut bytes, mut kept) = (0, 0);
        for proof in self.0.iter().rev().take(MAX_PROOFS) {
            bytes += proof.receipt.to_bytes().len() + 64;
            if kept > 0 && bytes > MAX_PROOF_BYTES {
                break;
            }
            kept += 1;
        }
        self.0.drain(..self.0.len() - kept);
    }
}

/// What the network's records say of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownVm {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Size,
}

/// A VM that was looked up.
#[derive(Clone, Debug)]
pub struct FoundVm {
    /// What is kept of it.
    pub known: KnownVm,
    /// When it was made.
    pub created: UnixTime,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// What was used, by the day; the member of each row is the host.
    pub sums: Sums,
    vms: BTreeMap<VmId, KnownVm>,
    /// The end and the number of the last confirmed receipt.
    last: (UnixTime, u64),
    proofs: Proofs,
    refused: Option<String>,
}

impl Book {
    /// Until when this member has confirmed what it used.
    pub fn confirmed(&self) -> Option<UnixTime> {
        (self.last.1 > 0).then_some(self.last.0)
    }

    /// Why the last receipt was not confirmed.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Notes why a receipt is not confirmed.
    pub fn refuse(&mut self, why: &str) {
        self.refused = Some(reason(why));
    }

    /// A VM's name, if the book knows it.
    pub fn name(&self, vm: VmId) -> Option<&str> {
        self.vms.get(&vm).map(|vm| vm.name.as_str())
    }

    /// This member's signature for a receipt that it has signed already, whose answer may have been
    /// lost.
    pub fn repeated(&self, receipt: &Receipt) -> Option<Signature> {
        let known = self.proofs.0.last().filter(|last| last.receipt == *receipt);
        known.map(|last| last.confirmed)
    }

    /// Checks the period.
    ///
    /// # Errors
    /// [`ReceiptRefusal::Period`], [`ReceiptRefusal::Overlap`].
    pub fn check_period(&self, terms: &Terms, now: UnixTime) -> Result<(), ReceiptRefusal> {
        let (end, seq) = self.last;
        terms.check_period(now, end)?;
        if terms.seq <= seq {
            return Err(ReceiptRefusal::Overlap);
        }
        Ok(())
    }

    /// The VMs of a receipt that have to be looked up.
    pub fn unknown(&self, terms: &Terms) -> Vec<VmId> {
        let vms = terms.lines.iter().filter_map(|line| line.vm);
        vms.filter(|vm| !self.vms.contains_key(vm)).collect()
    }

    /// Checks a receipt whose signature fits and signs it. `found` has the VMs that were looked up.
    ///
    /// # Errors
    /// A [`ReceiptRefusal`]; then nothing has changed.
    pub fn accept(
        &mut self,
        owner: &KeyPair,
        (receipt, terms): (&Receipt, &Terms),
        found: BTreeMap<VmId, FoundVm>,
        now: UnixTime,
    ) -> Result<Signature, ReceiptRefusal> {
        // The book may have changed during the look-up.
        self.check_period(terms, now)?;
        terms.check_amounts(|vm| {
            // A VM of an earlier receipt is older than this period.
            let known = self.vms.get(&vm).map(|vm| (vm.size, UnixTime(0)));
            known.or_else(|| found.get(&vm).map(|vm| (vm.known.size, vm.created)))
        })?;
        let found = found.into_iter().map(|(vm, found)| (vm, found.known));
        self.vms.extend(found);
        self.forget_vms(terms);
        // The last second of the period, which is in its day.
        let at = UnixTime(terms.to.0.saturating_sub(1));
        for line in &terms.lines {
            let key = Key {
                member: Some(terms.host),
                vm: line.vm,
            };
            self.sums.add(at, key, line.used);
        }
        self.sums.tidy(now, MAX_ROWS);
        let confirmed = receipt.confirm(owner);
        self.proofs.add(Proof {
            receipt: receipt.clone(),
            confirmed,
        });
        (self.last, self.refused) = ((terms.to, terms.seq), None);
        Ok(confirmed)
    }

    /// Keeps within the bound of VMs: those without a row go first, never one of this receipt.
    fn forget_vms(&mut self, terms: &Terms) {
        if self.vms.len() <= MAX_VMS {
            return;
        }
        let mut kept = self.sums.vms();
        kept.extend(terms.lines.iter().filter_map(|line| line.vm));
        self.vms.retain(|vm, _| kept.contains(vm));
        let is_named = |vm: &&VmId| terms.lines.iter().any(|line| line.vm == Some(**vm));
        let spare = self.vms.len().saturating_sub(MAX_VMS);
        let others = self.vms.keys().filter(|vm| !is_named(vm));
        let gone: Vec<VmId> = others.take(spare).copied().collect();
        gone.iter().for_each(|vm| drop(self.vms.remove(vm)));
    }
}

/// Another member's reason as one bounded line.
pub fn reason(text: &str) -> String {
    let line = text.chars().filter(|c| !c.is_control());
    line.take(MAX_REASON).collect()
}

/// What the book of an owner is called in this member's files.
pub fn of_host(host: MemberId) -> String {
    format!("{FROM}{host}")
}

/// The host of a book's file.
pub fn host_of(name: &str) -> Option<MemberId> {
    name.strip_prefix(FROM)?.parse().ok()
}

/// What the file with the proofs of an owner is called.
pub fn of_owner(owner: MemberId) -> String {
    format!("to-{owner}")
}

const FROM: &str = "from-";

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_authority::{Line, Usage};

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const SIZE: Size = Size {
        cpus: 1,
        memory_mib: 512,
        disk_mib: 0,
    };

    fn keys(number: u8) -> KeyPair {
        KeyPair::from_seed(&[number; 32])
    }

    fn terms(n: u64, vm: VmId) -> Terms {
        Terms {
            host: MemberId(keys(1).public()),
            owner: MemberId(keys(2).public()),
            seq: n,
            from: NOW.plus(n * 60),
            to: NOW.plus(n * 60 + 60),
            lines: vec![Line {
                vm: Some(vm),
                used: Usage {
                    cpu_ms: 1000,
                    ..Usage::default()
                },
            }],
        }
    }

    /// Shows the book a receipt for a VM of which the records say `found`.
    fn show(book: &mut Book, terms: &Terms, found: bool) -> Result<Signature, ReceiptRefusal> {
        let receipt = Receipt::sign(&keys(1), terms);
        let web = FoundVm {
            known: KnownVm {
                name: "web".into(),
                size: SIZE,
            },
            created: NOW,
        };
        let vms = book.unknown(terms).into_iter().filter(|_| found);
        let found = vms.map(|vm| (vm, web.clone())).collect();
        book.accept(&keys(2), (&receipt, terms), found, terms.to)
    }

    fn total(book: &Book) -> u64 {
        book.sums.since(NOW).values().map(|used| used.cpu_ms).sum()
    }

    #[test]
    fn a_receipt_counts_once_and_no_period_twice() {
        let (mut book, web) = (Book::default(), VmId([7; 32]));
        let first = terms(1, web);
        assert_eq!(
            show(&mut book, &first, false),
            Err(ReceiptRefusal::NoVm(web))
        );
        assert_eq!(book, Book::default());
        let signed = show(&mut book, &first, true).unwrap();
        let receipt = Receipt::sign(&keys(1), &first);
        assert_eq!(book.repeated(&receipt), Some(signed));
        for (lie, why) in [
            (first.clone(), ReceiptRefusal::Overlap),
            (
                Terms {
                    seq: 1,
                    ..terms(2, web)
                },
                ReceiptRefusal::Overlap,
            ),
            (
                Terms {
                    from: first.from,
                    ..terms(2, web)
                },
                ReceiptRefusal::Overlap,
            ),
        ] {
            assert_eq!(show(&mut book, &lie, true), Err(why));
        }
        assert_eq!((total(&book), book.name(web)), (1000, Some("web")));
        // The VM's record is gone; the book still knows its size.
        assert!(show(&mut book, &terms(2, web), false).is_ok());
        assert_eq!(
            (total(&book), book.confirmed()),
            (2000, Some(NOW.plus(180)))
        );
    }

    #[test]
    fn a_host_that_says_much_fills_no_more_than_its_bounds() {
        let mut book = Book::default();
        for n in 1..3000u64 {
            let mut vm = [0; 32];
            vm[..8].copy_from_slice(&n.to_be_bytes());
            show(&mut book, &terms(n, VmId(vm)), true).unwrap();
        }
        assert!(book.vms.len() <= MAX_VMS && book.proofs.0.len() <= MAX_PROOFS);
        assert_eq!(total(&book), 2999 * 1000);
        let bytes = postcard::to_stdvec(&book).unwrap().len();
        assert!(bytes < 512 << 10, "{bytes} bytes");
        book.refuse(&"no\n".repeat(1000));
        assert_eq!(book.refused().map(str::len), Some(MAX_REASON));
    }

    #[test]
    fn files_are_named_after_members() {
        let host = MemberId([5; 32]);
        assert_eq!(host_of(&of_host(host)), Some(host));
        assert_eq!(host_of(&of_owner(host)), None);
        assert_eq!(host_of("from-x.new"), None);
    }
}
