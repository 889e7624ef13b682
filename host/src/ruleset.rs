//! What `nft -j list ruleset` prints (libnftables-json(5)), as far as it matters here: chains, their rules, named sets.

use serde_json::Value;
use std::collections::BTreeMap;

/// A chain by family, table and name.
pub type ChainId = (String, String, String);

/// A chain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// The hook of a base chain.
    pub hook: Option<String>,
    /// The interfaces that it is hooked to, in the family `netdev`.
    pub devices: Vec<String>,
    /// Whether a packet that no rule decided on is dropped.
    pub drops: bool,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// By which it is removed.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// Matches, statements and verdict.
    pub expressions: Vec<Value>,
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
    one.chain(value.as_array().into_iter().flatten().filter_map(Value::as_str)).map(str::to_owned).collect()
}

fn id(value: &Value, name: &str) -> ChainId {
    (text(value, "family").to_owned(), text(value, "table").to_owned(), text(value, name).to_owned())
}

impl Ruleset {
    /// Reads what nft printed. What is not understood is left out.
    ///
    /// # Errors
    /// It is no JSON of nft's.
    pub fn parse(printed: &[u8]) -> Result<Self, serde_json::Error> {
        let all: Value = serde_json::from_slice(printed)?;
        let mut ruleset = Self::default();
        for object in all["nftables"].as_array().into_iter().flatten() {
            if let Some(table) = object.get("table") {
                let name = (text(table, "family").to_owned(), text(table, "name").to_owned());
                ruleset.tables.insert(name, table["comment"].as_str().map(str::to_owned));
            } else if let Some(chain) = object.get("chain") {
                let known = ruleset.chains.entry(id(chain, "name")).or_default();
                known.hook = chain["hook"].as_str().map(str::to_owned);
                known.devices = strings(&chain["dev"]);
                known.drops = chain["policy"] == "drop";
            } else if let Some(rule) = object.get("rule") {
                ruleset.chains.entry(id(rule, "chain")).or_default().rules.push(Rule {
                    handle: rule["handle"].as_u64().unwrap_or_default(),
                    comment: rule["comment"].as_str().map(str::to_owned),
                    expressions: rule["expr"].as_array().cloned().unwrap_or_default(),
                });
            } else if let Some(set) = object.get("set") {
                ruleset.sets.insert(id(set, "name"), set["elem"].as_array().cloned().unwrap_or_default());
            }
        }
        Ok(ruleset)
    }

    /// The base chains of a hook.
    pub fn base_chains<'a>(&'a self, hook: &'a str) -> impl Iterator<Item = (&'a ChainId, &'a Chain)> {
        self.chains.iter().filter(move |(_, chain)| chain.hook.as_deref() == Some(hook))
    }

    /// A chain by its names.
    pub fn chain(&self, family: &str, table: &str, name: &str) -> Option<&Chain> {
        self.chains.get(&(family.to_owned(), table.to_owned(), name.to_owned()))
    }

    /// The same without the rules whose comment is one of p2pvm's.
    pub fn without_ours(&self) -> Self {
        let mut others = self.clone();
        for chain in others.chains.values_mut() {
            chain.rules.retain(|rule| !rule.comment.as_deref().is_some_and(|comment| comment.starts_with("p2pvm ")));
        }
        others
    }
}
