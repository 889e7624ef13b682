//! Which ways the C library glibc looks up names of hosts (nsswitch.conf(5)), and what is wrong
//! with them for the network's.
//!
//! Only glibc reads that file: the library musl and static programs ask the servers of
//! `resolv.conf` whatever it says. Of each service it is known what it says of a name of the
//! network: `files` and those like it that there is none, and mDNS nothing, as it knows names under
//! `.local` alone. So `[NOTFOUND=return]` behind `mdns4_minimal` ends no search, behind `files` it
//! does.

use super::scene::{Resolved, Scene};
use crate::Finding;
use std::path::Path;

/// Services that know hosts of their own and say of all others that there are none.
const LOCAL: [&str; 4] = ["files", "compat", "myhostname", "mymachines"];

/// Which ways glibc looks up names of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// By the name servers of resolv.conf.
    pub dns: bool,
    /// By systemd-resolved.
    pub resolve: bool,
    /// Whether the name servers are asked only where systemd-resolved does not run.
    pub dns_is_fallback: bool,
    /// The service whose action ends every search for a name that it does not know, before those
    /// above.
    pub ended_by: Option<String>,
}

impl Default for Ways {
    /// glibc's own, for a missing file or line.
    fn default() -> Self {
        Self {
            dns: true,
            resolve: false,
            dns_is_fallback: false,
            ended_by: None,
        }
    }
}

/// A service, and whether a search ends with it that finds nothing there, or that it could not
/// make.
struct Service {
    name: String,
    ends_not_found: bool,
}

/// The services of a line with their actions, `files mdns4_minimal [NOTFOUND=return] dns`.
fn services(line: &str) -> Vec<Service> {
    let mut found: Vec<Service> = Vec::new();
    for (at, part) in line.split('[').enumerate() {
        let (actions, names) = if at == 0 {
            ("", part)
        } else {
            part.split_once(']').unwrap_or((part, ""))
        };
        if let Some(last) = found.last_mut() {
            last.ends_not_found |= ends_not_found(actions);
        }
        let service = |name: &str| Service {
            name: name.to_owned(),
            ends_not_found: false,
        };
        found.extend(names.split_whitespace().map(service));
    }
    found
}

/// Whether the actions in brackets end a search where there is no such name.
fn ends_not_found(actions: &str) -> bool {
    let mut ends = false;
    // Spaces may stand around the "=".
    for (status, action) in actions
        .replace(" =", "=")
        .replace("= ", "=")
        .split_whitespace()
        .filter_map(|one| one.split_once('='))
    {
        let status = status.to_ascii_lowercase();
        let is_meant = match status.strip_prefix('!') {
            Some(other) => other != "notfound",
            None => status == "notfound",
        };
        if is_meant {
            ends = action.eq_ignore_ascii_case("return");
        }
    }
    ends
}

/// Reads nsswitch.conf(5).
pub fn ways(nsswitch: &str) -> Ways {
    let lines = nsswitch
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let mut hosts = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(database, _)| database.trim() == "hosts");
    // Of several the last counts.
    let Some((_, line)) = hosts.next_back() else {
        return Ways::default();
    };
    let mut ways = Ways {
        dns: false,
        resolve: false,
        dns_is_fallback: false,
        ended_by: None,
    };
    let mut resolved_ends = false;
    for Service {
        name,
        ends_not_found,
    } in services(line)
    {
        match name.as_str() {
            "dns" => (ways.dns, ways.dns_is_fallback) = (true, resolved_ends),
            "resolve" => {
                ways.resolve = true;
                resolved_ends |= ends_not_found;
            }
            local if LOCAL.contains(&local) && ends_not_found => {
                ways.ended_by = Some(name).filter(|_| !ways.dns && !ways.resolve);
                break;
            }
            _ => {}
        }
    }
    ways
}

/// Why programs of glibc do not find the network's names, if that is for this file.
pub(super) fn trouble(scene: &Scene, path: &Path) -> Option<Finding> {
    if !scene.reads_nsswitch() {
        return None;
    }
    let path = path.display();
    // Where all programs are glibc's, that is no news.
    let whose = if scene.musl {
        " of the C library glibc (those of musl do not read it)"
    } else {
        ""
    };
    let found = |why: String| format!("programs{whose} do not find the network's names: {why}");
    let ways = &scene.ways;
    match (&ways.ended_by, ways.dns, ways.resolve) {
        (Some(service), false, false) => Some(Finding::failed(
            found(format!(
                "{path} ends each search at '{service}', by the action behind it"
            )),
            format!(
                "remove the '[NOTFOUND=return]' behind '{service}' in the line 'hosts:' of {path}"
            ),
        )),
        (None, false, false) => Some(Finding::failed(
            found(format!("{path} names neither dns nor resolve")),
            format!("add 'dns' to the line 'hosts:' of {path}"),
        )),
        (_, false, true) if matches!(scene.resolved, Resolved::Absent | Resolved::Dead) => {
            Some(Finding::failed(
                found(format!(
                    "{path} names resolve and not dns, and systemd-resolved does not run"
                )),
                format!(
                    "'systemctl start systemd-resolved', or add 'dns' behind 'resolve' in the \
                        line 'hosts:' of {path}"
                ),
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (bool, bool, bool) {
        let ways = ways(line);
        (ways.dns, ways.resolve, ways.dns_is_fallback)
    }

    #[test]
    fn nsswitch_is_read_with_its_comments_and_actions() {
        assert_eq!(read(""), (true, false, false), "glibc's own default");
        assert_eq!(
            read("passwd: files\n# hosts: files"),
            (true, false, false),
            "the line is missing"
        );
        assert_eq!(
            read("hosts: files mdns4_minimal [NOTFOUND=return] dns # resolve"),
            (true, false, false)
        );
        assert_eq!(
            read("hosts:\tmymachines resolve [!UNAVAIL=return] files myhostname dns"),
            (true, true, true)
        );
        assert_eq!(
            read("hosts: files resolve [ notfound = return ] dns"),
            (true, true, true)
        );
        assert_eq!(read("hosts: files resolve dns"), (true, true, false));
        assert_eq!(
            read("hosts: files dns [NOTFOUND=return] resolve"),
            (true, true, false)
        );
        assert_eq!(read("hosts: files"), (false, false, false));
        assert_eq!(
            read("hosts: dns\nhosts: files"),
            (false, false, false),
            "the last line counts"
        );
        assert_eq!(
            ways("hosts: files [NOTFOUND=return] dns")
                .ended_by
                .as_deref(),
            Some("files")
        );
        assert_eq!(ways("hosts: files [NOTFOUND=continue] dns").ended_by, None);
        assert_eq!(ways("hosts: files [!NOTFOUND=return] dns").ended_by, None);
        assert!(!ways("hosts: files [!UNAVAIL=return] resolve dns").dns);
    }

    #[test]
    fn each_kind_of_host_hears_what_keeps_its_programs_from_the_names() {
        let scene = |line: &str, musl, glibc, resolved| Scene {
            resolved,
            ways: ways(line),
            musl,
            glibc,
            copied: false,
        };
        let said = |scene: &Scene| {
            let found = trouble(scene, Path::new("/etc/nsswitch.conf"));
            found
                .map(|finding| (finding.found, finding.advice))
                .unwrap_or_default()
        };
        let alone = |line: &str| said(&scene(line, false, true, Resolved::Absent));
        let (found, advice) = alone("hosts: files");
        assert!(
            found.starts_with("programs do not find") && found.contains("neither dns nor resolve"),
            "{found}"
        );
        assert!(advice.contains("add 'dns'"), "{advice}");
        let (found, advice) = alone("hosts: files [NOTFOUND=return] dns");
        assert!(
            found.contains("at 'files'") && advice.contains("remove the '[NOTFOUND=return]'"),
            "{found}: {advice}"
        );
        let (found, advice) = alone("hosts: files resolve");
        assert!(
            found.contains("systemd-resolved does not run") && advice.contains("add 'dns'"),
            "{found}"
        );
        for good in [
            "",
            "passwd: files",
            "hosts: files resolve [!UNAVAIL=return] dns",
            "hosts: files mdns4_minimal [NOTFOUND=return] dns",
        ] {
            assert_eq!(alone(good), Default::default(), "{good}");
        }
        assert_eq!(
            said(&scene("hosts: resolve", false, true, Resolved::Alive)),
            Default::default()
        );

        // Beside programs of musl the others are named; where all are musl's nobody reads the file.
        let (found, _) = said(&scene("hosts: files", true, true, Resolved::Absent));
        assert!(
            found.starts_with("programs of the C library glibc (those of musl"),
            "{found}"
        );
        assert_eq!(
            said(&scene("hosts: files", true, false, Resolved::Absent)),
            Default::default()
        );
        let (found, _) = said(&scene("hosts: files", false, false, Resolved::Absent));
        assert!(
            found.starts_with("programs do not"),
            "of a loader at an unknown place: {found}"
        );
    }
}
