//! Finds the process that holds a port, from the kernel's tables of sockets and the descriptors in
//! /proc, as far as this process may see them.

use std::{fs, path::Path};

/// The process that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The process that has bound this port; `None` if no process has, or this one may not see it.
pub fn holder(protocol: &str, port: u16) -> Option<Holder> {
    let tables = [
        format!("/proc/net/{protocol}"),
        format!("/proc/net/{protocol}6"),
    ];
    let inodes: Vec<u64> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|text| inodes(&text, port))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter()
        .find(|pid| has_socket(*pid, &inodes))
        .map(|pid| Holder {
            pid,
            name: name(pid),
        })
}

/// Sockets bound to a port, in the text of /proc/net/udp or tcp; of TCP those that listen.
fn inodes(text: &str, port: u16) -> Vec<u64> {
    let bound = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
        let at = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        // 0A: TCP listens; 07: UDP is bound.
        (at == port && ["0A", "07"].contains(state))
            .then(|| inode.parse().ok())
            .flatten()
    };
    text.lines().skip(1).filter_map(bound).collect()
}

fn has_socket(pid: u32, inodes: &[u64]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| is_one_of(&target, inodes))
}

fn is_one_of(target: &Path, inodes: &[u64]) -> bool {
    let text = target.to_string_lossy();
    let inode = text
        .strip_prefix("socket:[")
        .and_then(|rest| rest.strip_suffix(']'))
        .and_then(|inode| inode.parse().ok());
    inode.is_some_and(|inode: u64| inodes.contains(&inode))
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "a process".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_process_that_has_a_port_is_named() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("[::1]:0")
            .or_else(|_| TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        for (protocol, port) in [
            ("udp", udp.local_addr().unwrap().port()),
            ("tcp", tcp.local_addr().unwrap().port()),
        ] {
            assert_eq!(
                holder(protocol, port).map(|holder| holder.pid),
                Some(std::process::id()),
                "{protocol} {port}"
            );
        }
        drop(udp);
        assert_eq!(
            inodes(
                "sl local rem st\n 1: 00000000:0FA2 00000000:0000 01 0 0 0 0 0 77 2",
                4002
            ),
            Vec::<u64>::new()
        );
    }
}
