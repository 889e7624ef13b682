//! The p2pvm program.

fn main() {}
