//! Which ways the C library glibc looks up names of hosts (nsswitch.conf(5)).
//!
//! Only glibc reads that file: the library musl and static programs always ask the servers of
//! `resolv.conf`. The answer of each service to a name of the network is known: `files` and its
//! like find nothing, and mDNS does not answer, because it knows only names under `.local`. So
//! `[NOTFOUND=return]` after `mdns4_minimal` ends no search, but after `files` it does.

/// Services that know some hosts and find nothing for all others.
const LOCAL: [&str; 4] = ["files", "compat", "myhostname", "mymachines"];

/// Which ways glibc looks up names of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// By the name servers of resolv.conf.
    pub dns: bool,
    /// By systemd-resolved.
    pub resolve: bool,
    /// Whether the name servers are asked only if systemd-resolved does not run.
    pub dns_is_fallback: bool,
    /// The service before these whose action ends every search for a name that it does not know.
    pub ended_by: Option<String>,
}

impl Default for Ways {
    /// glibc's default, for a missing file or line.
    fn default() -> Self {
        Self {
            dns: true,
            resolve: false,
            dns_is_fallback: false,
            ended_by: None,
        }
    }
}

/// A service, and whether a search ends there if it finds nothing.
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

/// Whether the actions in brackets end a search that finds nothing.
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

/// Parses nsswitch.conf(5).
pub fn ways(nsswitch: &str) -> Ways {
    let lines = nsswitch
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let mut hosts = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(database, _)| database.trim() == "hosts");
    // The last of several counts.
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
}
