//! Migration requests, VM records, requests between hosts, what a snapshot says of its VM, what an
//! heir keeps, and what daemon and guest guardian say to each other.
#![no_main]
use libfuzzer_sys::fuzz_target;
use p2pvm_vm_manager::{
    Protection, Replica,
    directory::VmRecord,
    host::remote::{VmAnswer, VmRequest},
    migrate::wire::{Answer, Request},
};

fuzz_target!(|bytes: &[u8]| {
    if let Some(record) = VmRecord::from_bytes(bytes) {
        assert!(VmRecord::from_bytes(&record.to_bytes()).is_some());
    }
    if let Some(protection) = Protection::from_field(bytes) {
        assert_eq!(
            Protection::from_field(&protection.to_field()),
            Some(protection)
        );
    }
    if let Some(replica) = Replica::from_field(bytes) {
        assert!(replica.to_field().len() <= 255);
    }
    let _ = postcard::from_bytes::<Request>(bytes);
    let _ = postcard::from_bytes::<Answer>(bytes);
    let _ = postcard::from_bytes::<VmRequest>(bytes);
    let _ = postcard::from_bytes::<VmAnswer>(bytes);
    p2pvm_vm_manager::parse_sealed(bytes);
    p2pvm_vm_manager::heal::parse_inheritance(bytes);
    p2pvm_vm_manager::guardian::parse_message(bytes);
});
