//! Accounting: who used how much of whose host, and the receipts that a host and an owner sign for
//! each other.
//!
//! [`meter`] turns readings into amounts by a clock that stands still while the machine sleeps,
//! [`sums`] adds them up by the hour and the day, [`account`] has what is not yet in a receipt,
//! [`book`] the receipts of other hosts: these do no IO. [`service`] reads, sends, answers and
//! keeps. Receipts themselves are in `p2pvm_authority`; docs/decisions/0054 says why there is no
//! shared ledger and what a receipt does not prove.

mod account;
mod book;
mod desk;
mod files;
pub(crate) mod http;
mod ledger;
mod meter;
pub(crate) mod service;
mod sums;
mod view;
