//! Keeps a guest's interface apart from this machine's own network stack: what the guest sends is
//! for the packet socket that its port reads, and for nothing else. The interface has to be up, so
//! otherwise the kernel delivers here what carries an address of this machine, or a broadcast, past
//! the access rules.
//!
//! Three means, since each may be missing. A filter at the interface's ingress (tc-matchall(8),
//! clsact) drops every frame after packet sockets have had their copy; it needs two modules of the
//! kernel, and no program. Where it cannot be made, a table of nftables does the same
//! ([`tables`]). The interface's own settings (ip-sysctl) have the kernel drop sources that do not
//! lead back to it, which none do, as it has neither address nor route: whatever `all` says, since
//! the greater of the two counts. Alone they leave broadcasts from 0.0.0.0.

mod tables;

use crate::netlink::Netlink;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcMessage},
};
use std::{fs, io};

/// NLM_F_EXCL and NLM_F_CREATE of netlink(7).
const NEW: u16 = 0x200 | 0x400;
/// Handles of linux/pkt_sched.h: the clsact discipline, where it hangs, its ingress.
const CLSACT: u32 = 0xffff_0000;
const CLSACT_PARENT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
/// The filter's place: before all others, for all protocols (`ETH_P_ALL`, big endian).
const FIRST: u32 = 1 << 16;
const ALL_PROTOCOLS: u16 = 0x0003;
/// Attributes of linux/rtnetlink.h, pkt_cls.h and tc_act/tc_gact.h.
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_GACT_PARMS: u16 = 2;
const TC_ACT_SHOT: u32 = 2;

/// Keeps the interface apart, or sees to it that it still is. Must be called in its network
/// namespace.
///
/// # Errors
/// nft's error where the kernel has neither filter; the settings are made all the same.
pub fn keep_apart(ifname: &str) -> io::Result<()> {
    for (family, setting, value) in [
        // It would answer ARP for any address of this machine.
        ("ipv4", "arp_ignore", "8"),
        ("ipv4", "rp_filter", "1"),
        ("ipv4", "accept_local", "0"),
        ("ipv4", "route_localnet", "0"),
        ("ipv6", "disable_ipv6", "1"),
    ] {
        let file = format!("/proc/sys/net/{family}/conf/{ifname}/{setting}");
        set(&file, value).unwrap_or_else(|error| {
            tracing::debug!(
                %file,
                error = %crate::chain(&error),
                "cannot set a kernel parameter"
            )
        });
    }
    drop_all(nix::net::if_::if_nametoindex(ifname)?).or_else(|error| {
        tracing::debug!(
            ifname,
            error = %crate::chain(&error),
            "the kernel has no filter of traffic control for a guest's interface"
        );
        drop_by_nftables(ifname)
    })
}

/// Drops every frame that comes in by the interface with a table of nftables, for [`keep_apart`] in
/// a kernel that has no other filter. Must be called in its network namespace.
///
/// # Errors
/// nft's error.
pub fn drop_by_nftables(ifname: &str) -> io::Result<()> {
    tables::drop_all(ifname)
}

/// Removes what [`keep_apart`] made for an interface that is gone and what does not go with it.
/// Must be called in its network namespace.
pub fn let_go(ifname: &str) {
    tables::let_go(ifname);
}

/// Removes what [`keep_apart`] made for interfaces that are gone, whichever process made it.
pub fn let_go_of_gone() {
    if let Err(error) = tables::let_go_of_gone() {
        tracing::debug!(
            error = %crate::chain(&error),
            "cannot remove the filters of guests' interfaces that are gone"
        );
    }
}

fn set(file: &str, value: &str) -> io::Result<()> {
    if fs::read_to_string(file)?.trim() != value {
        fs::write(file, value)?;
    }
    Ok(())
}

/// Drops every frame that comes in by the interface, behind packet sockets.
fn drop_all(index: u32) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let mut discipline = message(index, CLSACT_PARENT, "clsact")?;
    discipline.header.handle = CLSACT.into();
    made(netlink.change(RouteNetlinkMessage::NewQueueDiscipline(discipline), NEW))?;
    let mut filter = message(index, INGRESS, "matchall")?;
    filter.header.handle = 1.into();
    filter.header.info = FIRST | u32::from(ALL_PROTOCOLS.to_be());
    let options = TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, drops()));
    filter.attributes.push(options);
    made(netlink.change(RouteNetlinkMessage::NewTrafficFilter(filter), NEW))
}

fn message(index: u32, parent: u32, kind: &str) -> io::Result<TcMessage> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    message.header.parent = parent.into();
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    Ok(message)
}

fn made(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// The one action of the filter: drop.
fn drops() -> Vec<u8> {
    // struct tc_gact: index, capab, action, refcnt, bindcnt.
    let parameters: Vec<u8> = [0, 0, TC_ACT_SHOT, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let options = attribute(TCA_ACT_OPTIONS, &attribute(TCA_GACT_PARMS, &parameters));
    let action = [attribute(TCA_ACT_KIND, b"gact\0"), options].concat();
    attribute(TCA_MATCHALL_ACT, &attribute(1, &action))
}

/// An attribute as netlink(7) lays it out.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("these attributes are short");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_is_laid_out_as_the_kernel_reads_it() {
        let bytes = drops();
        let length = u16::from_ne_bytes([bytes[0], bytes[1]]);
        assert_eq!((usize::from(length), bytes.len()), (48, 48));
        assert_eq!(bytes[12..17], *b"gact\0");
        assert_eq!(bytes[36..40], TC_ACT_SHOT.to_ne_bytes());
    }
}
