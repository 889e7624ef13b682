//! Golden bytes of what members write into the DHT about addresses and names, and of the keys that
//! it stands at.

use crate::{
    Holder, NameEntry, NameKind, Subject, address_key,
    entry::Entry,
    golden::{self, variants},
    name_key,
};
use p2pvm_overlay::{Epoch, MemberId, VmId};

const MEMBER: MemberId = MemberId([4; 32]);
const VM: VmId = VmId([3; 32]);

fn holder(vm: Option<VmId>) -> Holder {
    Holder {
        member: MEMBER,
        epoch: Epoch(300),
        vm,
        name: "web-1".into(),
    }
}

fn named(subject: Subject, has_v6: bool) -> NameEntry {
    NameEntry {
        subject,
        v4: [10, 9, 0, 7].into(),
        v6: has_v6.then(|| "fd00::7".parse().expect("an address")),
    }
}

fn entries() -> Vec<(&'static str, Entry)> {
    let member = Subject::Member(MEMBER);
    variants! {
        Entry::Address(_) => {
            "address.of-member": Entry::Address(holder(None)),
            "address.of-vm": Entry::Address(holder(Some(VM))),
        }
        Entry::Name(_) => {
            "name": Entry::Name(named(member, false)),
            "name.v6": Entry::Name(named(member, true)),
        }
    }
}

#[test]
fn members_of_the_previous_version_read_every_address_and_name() {
    golden::check("entries", |golden| {
        golden.messages(
            entries(),
            |entry| match entry {
                Entry::Address(holder) => holder.encode(),
                Entry::Name(named) => named.encode(),
            },
            |bytes| {
                let address = Holder::decode(bytes).map(Entry::Address);
                address.or_else(|| NameEntry::decode(bytes).map(Entry::Name))
            },
        );
        let subjects = variants! {
            Subject::Member(_) => { "subject.member": Subject::Member(MEMBER) }
            Subject::Vm(_) => { "subject.vm": Subject::Vm(VM) }
        };
        for (name, subject) in subjects {
            let entry = named(subject, false);
            golden.message(name, &entry, NameEntry::encode, NameEntry::decode);
        }
        let kinds = variants! {
            NameKind::Host => { "key.host": NameKind::Host }
            NameKind::Vm => { "key.vm": NameKind::Vm }
        };
        for (name, kind) in kinds {
            golden.bytes(name, &name_key(kind, "web-1").0);
        }
        golden.bytes(
            "version-of-an-epoch",
            &Epoch(300).first_version().to_be_bytes(),
        );
        for (name, address) in [("key.v4", "10.9.0.7"), ("key.v6", "fd00::7")] {
            let address = address.parse().expect("an address");
            golden.bytes(name, &address_key(address).0);
        }
    });
}
