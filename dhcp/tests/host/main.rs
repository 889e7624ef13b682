//! This machine's programs and the network's names, with the programs' own C libraries: glibc's and
//! musl's `getaddrinfo` ask our real resolver, led there by the real keeper, on hosts that are set
//! up in all the ways that hosts are. Each host is a thread with a network and mounts of its own:
//! the machine's own files and addresses are not touched.

mod machine;
mod managers;
mod plain;
mod resolved;

/// Says that a test was not run, and why.
pub fn not_run(why: &str) {
    println!("NOT RUN: {why}");
}
