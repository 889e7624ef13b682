//! The state of a host as text: interfaces, addresses, routes, rules, packet filters, sysctls,
//! files of `/etc`, processes. The states before p2pvm starts and after it has stopped must be
//! equal.
//!
//! Values that change by themselves are left out: counters, lifetimes, numbers that the kernel
//! reassigns.

use crate::testbed::{Error, Testbed};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

/// Keys of `ip -j` whose values count or are reassigned.
const VOLATILE: [&str; 10] = [
    "ifindex",
    "link_index",
    "link_netnsid",
    "stats64",
    "valid_life_time",
    "preferred_life_time",
    "expires",
    "age",
    "cache",
    "operstate",
];
/// Flags that follow the other end of a cable with a delay.
const OF_THE_OTHER_END: [&str; 4] = ["LOWER_UP", "NO-CARRIER", "linkdown", "dead"];
/// Sysctls that count.
const COUNTING: [&str; 1] = ["nf_conntrack_count"];
/// The directories of the network's sysctls.
const SWITCHES: [&str; 3] = [
    "/proc/sys/net/ipv4",
    "/proc/sys/net/ipv6",
    "/proc/sys/net/netfilter",
];
/// Text files up to this size are compared line by line, others as a whole.
const SHOWN_BYTES: u64 = 8192;

/// A host's state: sections of lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    sections: BTreeMap<&'static str, Vec<String>>,
}

/// The differences of two states, as lines that begin with `-` (only before) or `+` (only after);
/// empty if they are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference(pub Vec<String>);

impl Difference {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl HostState {
    /// Reads the state of a host.
    ///
    /// # Errors
    /// If there is no such host or a tool of this machine (`ip`, `nft`) fails on it.
    pub fn of(testbed: &Testbed, host: &str) -> Result<Self, Error> {
        let reading = |e| Error::Io(format!("read the state of host {host}"), e);
        // With the host's own nft: an older one may crash on rules of a newer one.
        let listed = testbed.exec(host, &["nft", "list", "ruleset"])?;
        if !listed.status.success() {
            let said = String::from_utf8_lossy(&listed.stderr);
            return Err(reading(io::Error::other(format!(
                "nft list ruleset: {}: {said}",
                listed.status
            ))));
        }
        let mut sections = testbed.inside(host, network)?.map_err(reading)?;
        sections.insert("nft", ruleset(&String::from_utf8_lossy(&listed.stdout)));
        let mut files = Vec::new();
        let root = testbed.files(host)?;
        list(&root, Path::new("etc"), &mut files);
        runtime(&root.join("run"), &mut files);
        sections.insert("files", files);
        let mut processes: Vec<String> = testbed
            .processes(host)?
            .into_iter()
            .filter_map(command_line)
            .collect();
        processes.sort();
        sections.insert("processes", processes);
        Ok(Self { sections })
    }

    /// The difference from this state to another.
    pub fn difference(&self, after: &Self) -> Difference {
        let mut lines = Vec::new();
        for section in self.sections.keys().chain(
            after
                .sections
                .keys()
                .filter(|s| !self.sections.contains_key(*s)),
        ) {
            let (old, new) = (count(self.section(section)), count(after.section(section)));
            for (line, times) in &old {
                let gone = times.saturating_sub(new.get(line).copied().unwrap_or(0));
                lines.extend((0..gone).map(|_| format!("- {section}: {line}")));
            }
            for (line, times) in &new {
                let come = times.saturating_sub(old.get(line).copied().unwrap_or(0));
                lines.extend((0..come).map(|_| format!("+ {section}: {line}")));
            }
        }
        Difference(lines)
    }

    /// The lines of a section: `links`, `addresses`, `routes`, `rules`, `nft`, `legacy`,
    /// `switches`, `files`, `processes`.
    pub fn section(&self, name: &str) -> &[String] {
        self.sections.get(name).map_or(&[], Vec::as_slice)
    }

    /// The same without one section.
    #[must_use]
    pub fn without(mut self, section: &str) -> Self {
        self.sections.remove(section);
        self
    }
}

fn count(lines: &[String]) -> BTreeMap<&str, usize> {
    let mut counted = BTreeMap::new();
    for line in lines {
        *counted.entry(line.as_str()).or_default() += 1;
    }
    counted
}

/// The state of the kernel's network of this thread.
fn network() -> io::Result<BTreeMap<&'static str, Vec<String>>> {
    let mut sections: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let (links, addresses) = interfaces(&ask("ip", &["-d", "-j", "addr"])?);
    sections.insert("links", links);
    sections.insert("addresses", addresses);
    for (section, words) in [
        ("routes", &["route", "show", "table", "all"][..]),
        ("rules", &["rule"]),
    ] {
        for family in ["-4", "-6"] {
            let said = ask("ip", &[&["-d", "-j", family], words].concat())?;
            let lines = objects(&said)
                .into_iter()
                .filter(|o| !is_link_local(o["dst"].as_str().unwrap_or_default()))
                .map(|mut o| {
                    strip(&mut o);
                    format!("{family} {o}")
                });
            sections.entry(section).or_default().extend(lines);
        }
    }
    sections.insert("legacy", legacy());
    let mut switches = Vec::new();
    SWITCHES
        .iter()
        .for_each(|directory| read_switches(Path::new(directory), &mut switches));
    sections.insert("switches", switches);
    sections.values_mut().for_each(|lines| lines.sort());
    Ok(sections)
}

fn ask(program: &str, words: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(words).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{program} {}: {}",
        words.join(" "),
        said.trim()
    )))
}

fn objects(json: &str) -> Vec<Value> {
    serde_json::from_str::<Vec<Value>>(json)
        .unwrap_or_default()
        .into_iter()
        .filter(|o| o.as_object().is_some_and(|o| !o.is_empty()))
        .collect()
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !VOLATILE.contains(&key.as_str()) && !key.ends_with("_timer"));
            map.values_mut().for_each(strip);
            if let Some(Value::Array(flags)) = map.get_mut("flags") {
                flags.retain(|flag| !OF_THE_OTHER_END.iter().any(|other| flag == other));
            }
        }
        Value::Array(all) => all.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Whether an address or its route is link-local: the kernel assigns those to each interface that
/// is up, with a delay.
fn is_link_local(address: &str) -> bool {
    address.starts_with("fe80:")
}

/// A line for each interface, and one for each address.
fn interfaces(json: &str) -> (Vec<String>, Vec<String>) {
    let (mut links, mut addresses) = (Vec::new(), Vec::new());
    for mut link in objects(json) {
        strip(&mut link);
        let name = link["ifname"].as_str().unwrap_or_default().to_owned();
        let found = link
            .as_object_mut()
            .and_then(|link| link.remove("addr_info"));
        let of = |address: &Value| {
            format!(
                "{name} {}/{} {}",
                address["local"].as_str().unwrap_or_default(),
                address["prefixlen"],
                address["scope"]
            )
        };
        let found = found.iter().filter_map(Value::as_array).flatten();
        addresses.extend(
            found
                .filter(|a| !is_link_local(a["local"].as_str().unwrap_or_default()))
                .map(of),
        );
        links.push(link.to_string());
    }
    (links, addresses)
}

/// Each line of the rules with the table and chain that it is in.
fn ruleset(text: &str) -> Vec<String> {
    let (mut path, mut lines) = (Vec::<String>::new(), Vec::new());
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if line == "}" {
            path.pop();
        } else if let Some(opened) = line.strip_suffix(" {") {
            path.push(opened.split(" {").next().unwrap_or(opened).to_owned());
            lines.push(path.join(" > "));
        } else {
            lines.push(format!("{} > {}", path.join(" > "), uncounted(line)));
        }
    }
    lines
}

/// A rule without the counts of its counter.
fn uncounted(rule: &str) -> String {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < words.len() {
        kept.push(words[at]);
        let counts = words[at] == "counter"
            && words.get(at + 1) == Some(&"packets")
            && words.get(at + 3) == Some(&"bytes");
        at += if counts { 5 } else { 1 };
    }
    kept.join(" ")
}

/// Rules of the kernel's older interface, which `nft` does not show.
fn legacy() -> Vec<String> {
    let mut lines = Vec::new();
    for (names, program) in [
        ("ip_tables_names", "iptables-legacy-save"),
        ("ip6_tables_names", "ip6tables-legacy-save"),
    ] {
        let tables =
            fs::read_to_string(Path::new("/proc/thread-self/net").join(names)).unwrap_or_default();
        if tables.trim().is_empty() {
            continue;
        }
        match ask(program, &[]) {
            Ok(said) => lines.extend(said.lines().filter(|l| !l.starts_with('#')).map(|l| {
                let rule = l.split(" [").next().unwrap_or(l);
                format!("{program}: {rule}")
            })),
            Err(_) => lines.push(format!(
                "{program} cannot be asked; tables: {}",
                tables.split_whitespace().collect::<Vec<_>>().join(" ")
            )),
        }
    }
    lines
}

fn read_switches(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_switches(&path, lines);
        } else if let Ok(value) = fs::read_to_string(&path)
            && !COUNTING.iter().any(|name| path.ends_with(name))
        {
            lines.push(format!(
                "{} = {}",
                path.display(),
                value.split_whitespace().collect::<Vec<_>>().join(" ")
            ));
        }
    }
}

/// Every file below `path` of `root` with owner, mode and a hash of its content.
fn list(root: &Path, path: &Path, lines: &mut Vec<String>) {
    let Ok(found) = fs::symlink_metadata(root.join(path)) else {
        return;
    };
    let about = format!(
        "/{} {:o} {}:{}",
        path.display(),
        found.permissions().mode(),
        found.uid(),
        found.gid()
    );
    if found.is_symlink() {
        let target = fs::read_link(root.join(path)).unwrap_or_default();
        lines.push(format!("{about} -> {}", target.display()));
    } else if found.is_dir() {
        lines.push(about);
        for entry in fs::read_dir(root.join(path))
            .into_iter()
            .flatten()
            .flatten()
        {
            list(root, &path.join(entry.file_name()), lines);
        }
    } else {
        let content = fs::read(root.join(path)).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        lines.push(format!(
            "{about} {} bytes, {:016x}",
            content.len(),
            hasher.finish()
        ));
        // A difference in this file is the one that people look for first: it is shown as text.
        if path.ends_with("resolv.conf") && found.len() <= SHOWN_BYTES {
            let text = String::from_utf8_lossy(&content);
            lines.extend(
                text.lines()
                    .map(|line| format!("/{}: {line}", path.display())),
            );
        }
    }
}

/// The parts of `/run` that are p2pvm's; those of other programs change by themselves.
fn runtime(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains("p2pvm")
            && entry.file_name() != "p2pvm-testbed"
        {
            lines.push(format!("/run/{}", entry.file_name().to_string_lossy()));
        }
    }
}

/// The command line of a process; `None` if it holds a root or has ended.
fn command_line(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = line
        .split(|b| *b == 0)
        .filter(|w| !w.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    let line = words.join(" ");
    (!line.is_empty() && line != "sleep infinity").then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_counts_is_no_difference_and_a_new_one_is() {
        let before = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority \
            filter; policy drop;\n\
                      \t\tcounter packets 1 bytes 60 jump DOCKER-USER\n\t}\n}\n";
        let after = before.replace("packets 1 bytes 60", "packets 7 bytes 420");
        assert_eq!(ruleset(before), ruleset(&after));
        let more = after.replace(
            "jump DOCKER-USER",
            "jump DOCKER-USER\n\t\tiifname \"p2pvm0\" accept",
        );
        let state = |text: &str| HostState {
            sections: BTreeMap::from([("nft", ruleset(text))]),
        };
        let difference = state(before).difference(&state(&more));
        assert_eq!(
            difference.0,
            ["+ nft: table ip filter > chain FORWARD > iifname \"p2pvm0\" accept"]
        );
        assert_eq!(state(&more).difference(&state(before)).0.len(), 1);
    }

    #[test]
    fn a_recreated_link_is_no_difference_and_one_that_is_down_is() {
        let link = |index: u32, flag: &str| {
            format!(
                "[{{\"ifindex\":{index},\"ifname\":\"eth0\",\"flags\":[\"{flag}\"],\"addr_info\":[{{\"local\":\"10.0.0.1\",\
                 \"prefixlen\":24,\"scope\":\"global\",\"valid_life_time\":{index}}}]}}]"
            )
        };
        assert_eq!(interfaces(&link(1, "UP")), interfaces(&link(2, "UP")));
        assert_ne!(
            interfaces(&link(1, "UP")).0,
            interfaces(&link(1, "BROADCAST")).0
        );
        assert_eq!(
            interfaces(&link(1, "UP")).1,
            ["eth0 10.0.0.1/24 \"global\""]
        );
    }
}
