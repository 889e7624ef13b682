//! What `nft -j list ruleset` prints (libnftables-json(5)), as far as it matters here: chains,
//! their rules, named sets.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A chain by family, table and name.
pub type ChainId = (String, String, String);

/// A chain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// The hook of a base chain.
    pub hook: Option<String>,
    /// The interfaces that it is hooked to, in the family `netdev`.
    pub devices: Vec<String>,
    /// Whether its policy is to drop.
    pub drops: bool,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// The number by which it is removed.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// Whether the comment is an iptables match, which nft neither lists nor saves.
    pub untold: bool,
    /// Matches, statements and verdict.
    pub expressions: Vec<Value>,
}

impl Rule {
    /// The chain that it jumps to.
    pub fn target(&self) -> Option<&str> {
        self.expressions
            .iter()
            .find_map(|expression| expression["jump"]["target"].as_str())
    }
}

/// All rules of a network namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    /// Chains.
    pub chains: BTreeMap<ChainId, Chain>,
    /// Elements of named sets, by family, table and name.
    pub sets: BTreeMap<ChainId, Vec<Value>>,
    /// Tables, by family and name, with their comments.
    pub tables: BTreeMap<(String, String), Option<String>>,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A string, or the strings of an array.
fn strings(value: &Value) -> Vec<String> {
    let one = value.as_str().into_iter();
    one.chain(
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str),
    )
    .map(str::to_owned)
    .collect()
}

fn id(value: &Value, name: &str) -> ChainId {
    (
        text(value, "family").to_owned(),
        text(value, "table").to_owned(),
        text(value, name).to_owned(),
    )
}

impl Rule {
    /// Whether it has the form of a passage and a comment that nft does not list.
    fn is_untold(&self) -> bool {
        let kind = |expression: &Value| match expression
            .as_object()
            .and_then(|object| object.iter().next())
        {
            Some((kind, body)) if kind == "match" => body["left"]["meta"]["key"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            Some((kind, body)) if kind == "xt" => format!("xt {}", text(body, "name")),
            Some((kind, _)) => kind.clone(),
            None => String::new(),
        };
        let kinds: Vec<String> = self
            .expressions
            .iter()
            .map(kind)
            .filter(|kind| kind != "counter")
            .collect();
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        self.comment.is_none()
            && matches!(
                kinds[..],
                ["iifname", "xt comment", "accept"]
                    | ["iifname", "oifname", "xt comment", "accept"]
            )
    }
}

/// The comment of several words in a rule that iptables printed.
pub(crate) fn iptables_comment(line: &str) -> Option<&str> {
    line.split_once("--comment \"")?.1.split('"').next()
}

/// The interfaces in the line of a chain's hook, as nft prints it without JSON: `hook egress device
/// "lan0" priority ...`, or `hook egress devices = { lan0, lan1 } priority ...`.
fn devices_in(listed: &str) -> Vec<String> {
    let hook = |line: &str| {
        let (_, rest) = line.split_once(" hook ")?;
        let (_, names) = rest.split_once(" device")?;
        let (names, _) = names.split_once(" priority ")?;
        let names = names
            .trim_start_matches('s')
            .trim_matches([' ', '=', '{', '}']);
        Some(
            names
                .split(',')
                .map(|name| name.trim().trim_matches('"').to_owned())
                .collect(),
        )
    };
    listed.lines().find_map(hook).unwrap_or_default()
}

impl Ruleset {
    /// Chains at interfaces' hooks whose interfaces are unknown.
    /// Reason: nft before 1.0.7 omits them from its JSON.
    pub(crate) fn without_devices(&self) -> Vec<ChainId> {
        let of_interfaces =
            |chain: &Chain| matches!(chain.hook.as_deref(), Some("ingress" | "egress"));
        let untold = self
            .chains
            .iter()
            .filter(|(_, chain)| of_interfaces(chain) && chain.devices.is_empty());
        untold.map(|(id, _)| id.clone()).collect()
    }

    /// Adds a chain's interfaces from its listing without JSON.
    pub(crate) fn tell_devices(&mut self, id: &ChainId, listed: &str) {
        if let Some(chain) = self.chains.get_mut(id) {
            chain.devices = devices_in(listed);
        }
    }

    /// Parses what nft printed. Unknown objects are skipped.
    ///
    /// # Errors
    /// It is not nft's JSON.
    pub fn parse(printed: &[u8]) -> Result<Self, serde_json::Error> {
        let all: Value = serde_json::from_slice(printed)?;
        let mut ruleset = Self::default();
        for object in all["nftables"].as_array().into_iter().flatten() {
            if let Some(table) = object.get("table") {
                let name = (
                    text(table, "family").to_owned(),
                    text(table, "name").to_owned(),
                );
                ruleset
                    .tables
                    .insert(name, table["comment"].as_str().map(str::to_owned));
            } else if let Some(chain) = object.get("chain") {
                let known = ruleset.chains.entry(id(chain, "name")).or_default();
                known.hook = chain["hook"].as_str().map(str::to_owned);
                known.devices = strings(&chain["dev"]);
                known.drops = chain["policy"] == "drop";
            } else if let Some(rule) = object.get("rule") {
                ruleset
                    .chains
                    .entry(id(rule, "chain"))
                    .or_default()
                    .rules
                    .push(Rule {
                        handle: rule["handle"].as_u64().unwrap_or_default(),
                        comment: rule["comment"].as_str().map(str::to_owned),
                        untold: false,
                        expressions: rule["expr"].as_array().cloned().unwrap_or_default(),
                    });
            } else if let Some(set) = object.get("set") {
                ruleset.sets.insert(
                    id(set, "name"),
                    set["elem"].as_array().cloned().unwrap_or_default(),
                );
            }
        }
        Ok(ruleset)
    }

    /// The base chains of a hook.
    pub fn base_chains<'a>(
        &'a self,
        hook: &'a str,
    ) -> impl Iterator<Item = (&'a ChainId, &'a Chain)> {
        self.chains
            .iter()
            .filter(move |(_, chain)| chain.hook.as_deref() == Some(hook))
    }

    /// A chain by its names.
    pub fn chain(&self, family: &str, table: &str, name: &str) -> Option<&Chain> {
        self.chains
            .get(&(family.to_owned(), table.to_owned(), name.to_owned()))
    }

    /// The families with iptables rules that could be passages and whose comment nft does not list,
    /// because it is an iptables match, as after `iptables-restore`.
    pub(crate) fn untold(&self) -> BTreeSet<&str> {
        let of_filter = self
            .chains
            .iter()
            .filter(|(id, _)| id.1 == "filter" && matches!(id.0.as_str(), "ip" | "ip6"));
        of_filter
            .filter(|(_, chain)| chain.rules.iter().any(Rule::is_untold))
            .map(|(id, _)| id.0.as_str())
            .collect()
    }

    /// Adds comments from what `iptables-nft-save -t filter` printed for a family. It lists a
    /// chain's rules in the same order.
    pub(crate) fn tell(&mut self, family: &str, saved: &str) {
        let mut by_chain: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (chain, rest) in saved
            .lines()
            .filter_map(|line| line.strip_prefix("-A ")?.split_once(' '))
        {
            by_chain.entry(chain).or_default().push(rest);
        }
        for (chain, lines) in by_chain {
            let id = (family.to_owned(), "filter".to_owned(), chain.to_owned());
            // Of another length: it was changed in between, and the next listing will do.
            let Some(known) = self
                .chains
                .get_mut(&id)
                .filter(|known| known.rules.len() == lines.len())
            else {
                continue;
            };
            for (rule, line) in known
                .rules
                .iter_mut()
                .zip(lines)
                .filter(|(rule, _)| rule.is_untold())
            {
                (rule.comment, rule.untold) = (iptables_comment(line).map(str::to_owned), true);
            }
        }
    }

    /// A copy without the rules that have a comment of p2pvm's.
    pub fn without_ours(&self) -> Self {
        let mut others = self.clone();
        for chain in others.chains.values_mut() {
            chain.rules.retain(|rule| {
                !rule
                    .comment
                    .as_deref()
                    .is_some_and(|comment| comment.starts_with("p2pvm "))
            });
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chains_interfaces_are_found_although_nfts_json_lacks_them() {
        // As nft 1.0.6 prints both.
        let chain = |hook: &str| {
            let chain = format!(
                r#""family":"netdev","table":"guard","name":"c","hook":"{hook}","policy":"drop""#
            );
            Ruleset::parse(format!(r#"{{"nftables":[{{"chain":{{{chain}}}}}]}}"#).as_bytes())
                .unwrap()
        };
        let id: ChainId = ("netdev".into(), "guard".into(), "c".into());
        let named = |hook: &str, devices: &str| {
            let mut ruleset = chain(hook);
            assert_eq!(ruleset.without_devices(), std::slice::from_ref(&id));
            let line = format!("type filter hook {hook} {devices} priority filter; policy drop;");
            ruleset.tell_devices(
                &id,
                &format!("table netdev guard {{\n\tchain c {{\n\t\t{line}\n\t}}\n}}\n"),
            );
            ruleset.chains[&id].devices.clone()
        };
        assert_eq!(named("egress", "device \"pv1\""), ["pv1"]);
        assert_eq!(named("ingress", "devices = { pv0, pv1 }"), ["pv0", "pv1"]);
        assert_eq!(
            named("egress", "devices = { \"pv0\", \"pv1\" }"),
            ["pv0", "pv1"]
        );
        assert!(chain("input").without_devices().is_empty());
    }

    #[test]
    fn comments_that_iptables_keeps_to_itself_are_taken_from_its_own_listing() {
        // As nft 1.0.6 lists what iptables-restore 1.8.9 has loaded, shortened.
        let iif = r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"p2pvm0"}}"#;
        let rule = |expr: &str| {
            let chain = r#""family":"ip","table":"filter","chain":"INPUT","handle":4"#;
            format!(r#"{{"rule":{{{chain},"expr":[{expr}]}}}}"#)
        };
        let comment = r#"{"xt":{"type":"match","name":"comment"}},
            {"counter":{"packets":0,"bytes":0}},{"accept":null}"#;
        let (plain, told) = (
            rule(r#"{"accept":null}"#),
            rule(&format!("{iif},{comment}")),
        );
        let listed = format!(r#"{{"nftables":[{plain},{told}]}}"#);
        let mut ruleset = Ruleset::parse(listed.as_bytes()).unwrap();
        assert_eq!(ruleset.untold(), BTreeSet::from(["ip"]));
        let comments = |ruleset: &Ruleset| -> Vec<_> {
            ruleset
                .chain("ip", "filter", "INPUT")
                .unwrap()
                .rules
                .iter()
                .map(|rule| rule.comment.clone())
                .collect()
        };
        let ours = "-A INPUT -i p2pvm0 -m comment --comment \"p2pvm p2pvm0 in\" -j ACCEPT";
        ruleset.tell(
            "ip",
            &format!("*filter\n:INPUT ACCEPT [0:0]\n{ours}\nCOMMIT\n"),
        );
        assert_eq!(
            comments(&ruleset),
            [None, None],
            "a listing of another moment says nothing"
        );
        ruleset.tell(
            "ip",
            &format!("*filter\n-A INPUT -j ACCEPT\n{ours}\nCOMMIT\n"),
        );
        assert_eq!(
            comments(&ruleset),
            [None, Some("p2pvm p2pvm0 in".to_owned())]
        );
        assert!(ruleset.untold().is_empty());
    }
}
