//! The life of a VM on one host and its move to another.
