//! The numbers that mark p2pvm's own sockets, rules and routes in the kernel, and the longest
//! prefix of a default route.

/// The mark of p2pvm's own sockets (SO_MARK): "p2pv".
pub const SOCKET_MARK: u32 = 0x7032_7076;
/// The protocol number of p2pvm's rules and routes (RTPROT_*; no other program uses 112): "p".
pub const PROTOCOL: u8 = 112;
/// The protocol number of an accepted route whose router does not answer: "q".
/// Reason: another network of this machine reads it.
pub const SILENT: u8 = 113;
/// How long a route's prefix is at most to count as a default route.
/// Reason: a VPN may replace the default route by 0.0.0.0/1 and 128.0.0.0/1; no LAN is as large.
pub const DEFAULT_LIKE: u32 = 7;
