//! The documentation as tests: pages are read, their commands run, what they quote is looked for in
//! the program.

pub mod compare;
pub mod page;
pub mod session;
pub mod sources;
