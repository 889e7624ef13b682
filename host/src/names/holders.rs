//! The sockets that hold a port of this machine: from `/proc/net`, and the descriptors of
//! processes.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// A socket that holds a port, and its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketHolder {
    /// The address that it is bound to; unspecified for all addresses.
    pub address: IpAddr,
    /// "udp" or "tcp".
    pub protocol: &'static str,
    /// The process's name and id, if it is visible.
    pub process: Option<(String, u32)>,
}

impl std::fmt::Display for SocketHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.process {
            Some((name, id)) => write!(f, "{name} (process {id})")?,
            None => write!(f, "another program")?,
        }
        match self.address.is_unspecified() {
            true => write!(f, " has it on all addresses"),
            false => write!(f, " has it on {}", self.address),
        }
    }
}

/// An address in `/proc/net`: 32-bit words in the machine's byte order.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        u32::from_str_radix(hex.get(at..at + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?);
            Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4))
        }
        _ => None,
    }
}

/// Sockets of one table that have the port: their addresses and inodes.
fn sockets(table: &str, port: u16, listening: bool) -> Vec<(IpAddr, u64)> {
    let read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (ip, at) = words.get(1)?.split_once(':')?;
        // TCP_LISTEN: a client's connection does not keep others from the port.
        let counts =
            u16::from_str_radix(at, 16).ok()? == port && (!listening || *words.get(3)? == "0A");
        counts.then_some((address(ip)?, words.get(9)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(read).collect()
}

fn process_of(inode: u64) -> Option<(String, u32)> {
    let wanted = format!("socket:[{inode}]");
    fs::read_dir("/proc")
        .ok()?
        .filter_map(Result::ok)
        .find_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let holds = fs::read_dir(entry.path().join("fd"))
                .ok()?
                .filter_map(Result::ok);
            let mut holds = holds.filter_map(|fd| fs::read_link(fd.path()).ok());
            holds.any(|to| to == Path::new(&wanted)).then(|| {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                (name.trim().to_owned(), id)
            })
        })
}

/// The sockets that keep others from `port` on `ip`, UDP or TCP, with their processes if visible.
pub fn of(ip: IpAddr, port: u16) -> Vec<SocketHolder> {
    let mut found = Vec::new();
    for (protocol, tables) in [("udp", ["udp", "udp6"]), ("tcp", ["tcp", "tcp6"])] {
        for table in tables {
            // The calling thread's network namespace, which may differ from the process's.
            let text =
                fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
            for (address, inode) in sockets(&text, port, protocol == "tcp") {
                if address == ip || address.is_unspecified() {
                    found.push(SocketHolder {
                        address,
                        protocol,
                        process: process_of(inode),
                    });
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_holder_of_a_port_is_named() {
        let all = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = all.local_addr().unwrap().port();
        let one = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let found = of(Ipv4Addr::LOCALHOST.into(), port);
        let me = std::process::id();
        assert!(
            found
                .iter()
                .all(|holder| holder.process.as_ref().is_some_and(|(_, id)| *id == me)),
            "{found:?}"
        );
        assert_eq!(
            found
                .iter()
                .map(|holder| holder.protocol)
                .collect::<Vec<_>>(),
            ["udp", "tcp"]
        );
        assert!(
            found[0].to_string().ends_with("has it on all addresses"),
            "{}",
            found[0]
        );
        drop((all, one));
        assert_eq!(of(Ipv4Addr::LOCALHOST.into(), port), []);
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let little = cfg!(target_endian = "little");
        assert_eq!(
            address(if little { "3500007F" } else { "7F000035" }),
            Some(Ipv4Addr::new(127, 0, 0, 53).into())
        );
        assert_eq!(
            address("00000000000000000000000000000000"),
            Some(Ipv6Addr::UNSPECIFIED.into())
        );
        assert_eq!(address("xyz"), None);
    }
}
