//! Names of interfaces, and the owner of the interface with a name.

use crate::{
    links::{Mark, links},
    netlink::Netlink,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use std::io;

/// IFNAMSIZ without the closing zero.
const LONGEST: usize = 15;

/// Why a text cannot be an interface's name; `None` if it can.
pub fn bad_name(name: &str) -> Option<String> {
    let why = match name {
        "" => "it is empty".to_owned(),
        "all" | "default" | "lo" => "the kernel uses it for something else".to_owned(),
        "." | ".." => "it names a directory".to_owned(),
        _ if name.len() > LONGEST => format!("it is longer than {LONGEST} characters"),
        _ => {
            let bad =
                |c: &char| !c.is_ascii_graphic() || matches!(c, '/' | '%' | ':' | '"' | '\\' | '*');
            format!("it holds '{}'", name.chars().find(bad)?.escape_default())
        }
    };
    Some(why)
}

/// The owner of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// There is no interface of this name.
    Nobody,
    /// A TUN device made in advance that no program holds: it can be used.
    Waiting,
    /// A p2pvm network's.
    Network(Mark),
    /// Another program's or hardware; with its kind, such as `bridge`.
    Other(String),
}

/// The owner of the interface `name`, in the calling thread's network namespace.
///
/// # Errors
/// The kernel's error.
pub fn owner(name: &str) -> io::Result<Owner> {
    let Some(link) = links()?.into_iter().find(|link| link.name == name) else {
        return Ok(Owner::Nobody);
    };
    if let Some(mark) = link.mark() {
        return Ok(Owner::Network(mark));
    }
    let kind = kind(link.index)?;
    Ok(if kind == "tun" && !link.carrier {
        Owner::Waiting
    } else {
        Owner::Other(kind)
    })
}

fn kind(index: u32) -> io::Result<String> {
    for answer in Netlink::open()?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(message) = answer else {
            continue;
        };
        if message.header.index != index {
            continue;
        }
        for attribute in &message.attributes {
            if let LinkAttribute::LinkInfo(infos) = attribute {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        return Ok(if *kind == InfoKind::Tun {
                            "tun".into()
                        } else {
                            kind.to_string()
                        });
                    }
                }
            }
        }
    }
    Ok("hardware".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_unfit_for_kernel_or_nft_are_refused_with_reason() {
        for good in ["p2pvm0", "a", "eth0.5", "wg-home_1", "123456789012345"] {
            assert_eq!(bad_name(good), None, "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            ("p2pvm%d", "'%'"),
            ("%d", "'%'"),
            ("a/b", "'/'"),
            ("a b", "' '"),
            ("all", "kernel"),
            ("default", "kernel"),
            ("lo", "kernel"),
            ("1234567890123456", "15"),
            (".", "directory"),
            ("tun\n", "\\n"),
            ("ä", "u{e4}"),
        ] {
            let said = bad_name(bad).unwrap_or_else(|| panic!("{bad} is allowed"));
            assert!(said.contains(why), "{bad}: {said}");
        }
    }
}
