//! Parses a policy's text. It refuses everything unknown, with the line and a correct form. Reason:
//! a rule that is silently not enforced is worse than none.

use super::{Action, NetworkPolicy, Ports, RouteRule, Rule, Selector};
use crate::membership::{Cidr, valid_name};
use serde::Deserialize;
use std::{fmt::Display, ops::Range, str::FromStr};
use toml::Spanned;

/// How many bytes a text has at most: some hundreds of rules with comments. Reason: every member
/// gets it.
pub const MAX_POLICY_BYTES: usize = 32 << 10;
/// How many rules a policy has at most. Reason: no person reads more, and each new conversation is
/// compared with all.
const MAX_RULES: usize = 512;
const MAX_ROUTES: usize = 256;

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct PolicyError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it, and a correct form.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    default: Spanned<String>,
    #[serde(default)]
    multicast: bool,
    #[serde(default)]
    rule: Vec<Spanned<RuleText>>,
    #[serde(default)]
    route: Vec<Spanned<RouteText>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    action: Spanned<String>,
    from: Spanned<TextList>,
    to: Spanned<TextList>,
    ports: Option<Spanned<TextList>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteText {
    subnet: Spanned<String>,
    by: Spanned<TextList>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum TextList {
    One(String),
    Many(Vec<String>),
}

impl TextList {
    fn all<T: FromStr<Err = String>>(&self) -> Result<Vec<T>, String> {
        let words = match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::Many(words) => words,
        };
        if words.is_empty() {
            return Err(
                "an empty list fits nothing: leave the rule out, or name somebody".to_owned(),
            );
        }
        words.iter().map(|word| word.trim().parse()).collect()
    }
}

impl FromStr for Action {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(format!(
                "'{text}' is no action: write \"allow\" or \"deny\""
            )),
        }
    }
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let label = |name: &str| valid_name(name).then(|| name.to_owned());
        let known = match text.split_once(':') {
            Some(("group", name)) => label(name).map(Self::Group),
            Some(("member", name)) => name
                .parse()
                .map(Self::MemberId)
                .ok()
                .or_else(|| label(name).map(Self::Member)),
            Some(("vm", name)) => name
                .parse()
                .map(Self::VmId)
                .ok()
                .or_else(|| label(name).map(Self::Vm)),
            _ => text
                .parse()
                .map(Self::Block)
                .ok()
                .or_else(|| label(text).map(Self::Group)),
        };
        known.ok_or_else(|| {
            let block = text
                .contains('/')
                .then(|| text.parse::<Cidr>().err())
                .flatten();
            block.map_or_else(
                || {
                    format!(
                        "'{text}' names nobody: write a group's name, member:NAME, vm:NAME, an \
                    address, a subnet, or \"*\""
                    )
                },
                |e| e.to_string(),
            )
        })
    }
}

impl FromStr for Ports {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no port: write tcp/22, udp/5000-6000, icmp or \"*\"");
        let (protocol, ports) = match text.split_once('/') {
            None if text == "*" => return Ok(Self::Any),
            None if text == "icmp" => return Ok(Self::Icmp),
            None if text == "tcp" => return Ok(Self::Tcp(0..=u16::MAX)),
            None if text == "udp" => return Ok(Self::Udp(0..=u16::MAX)),
            None => return Err(wrong()),
            Some(both) => both,
        };
        let port = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
        };
        let (first, last) = match ports.split_once('-') {
            Some((first, last)) => (
                port(first).ok_or_else(wrong)?,
                port(last).ok_or_else(wrong)?,
            ),
            None => (
                port(ports).ok_or_else(wrong)?,
                port(ports).ok_or_else(wrong)?,
            ),
        };
        if first > last {
            return Err(format!("'{text}' ends before it begins"));
        }
        match protocol {
            "tcp" => Ok(Self::Tcp(first..=last)),
            "udp" => Ok(Self::Udp(first..=last)),
            _ => Err(wrong()),
        }
    }
}

/// A text being read, for the lines in errors and rules.
struct Source<'a>(&'a str);

impl Source<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.0.as_bytes().iter().take(at);
        before.filter(|b| **b == b'\n').count() + 1
    }

    fn error(&self, at: Range<usize>, reason: String) -> PolicyError {
        PolicyError {
            line: self.line(at.start),
            reason,
        }
    }

    fn one<T: FromStr<Err: Display>>(&self, word: &Spanned<String>) -> Result<T, PolicyError> {
        let read = word.get_ref().parse();
        read.map_err(|e: T::Err| self.error(word.span(), e.to_string()))
    }

    fn all<T: FromStr<Err = String>>(
        &self,
        words: &Spanned<TextList>,
    ) -> Result<Vec<T>, PolicyError> {
        let read = words.get_ref().all();
        read.map_err(|e| self.error(words.span(), e))
    }

    fn rule(&self, rule: &Spanned<RuleText>) -> Result<Rule, PolicyError> {
        let written = rule.get_ref();
        Ok(Rule {
            action: self.one(&written.action)?,
            from: self.all(&written.from)?,
            to: self.all(&written.to)?,
            ports: match &written.ports {
                None => vec![Ports::Any],
                Some(ports) => self.all(ports)?,
            },
            line: self.line(rule.span().start),
        })
    }

    fn route(&self, route: &Spanned<RouteText>) -> Result<RouteRule, PolicyError> {
        let written = route.get_ref();
        let by = self.all(&written.by)?;
        let is_no_member =
            |s: &Selector| matches!(s, Selector::Vm(_) | Selector::VmId(_) | Selector::Block(_));
        if by.iter().any(is_no_member) {
            let reason = "only members offer subnets: name a group, member:NAME or \"*\"";
            return Err(self.error(written.by.span(), reason.to_owned()));
        }
        Ok(RouteRule {
            subnet: self.one::<Cidr>(&written.subnet)?,
            by,
            line: self.line(route.span().start),
        })
    }
}

/// Parses the TOML and refuses too much of it.
fn read_text(source: &Source<'_>) -> Result<Text, PolicyError> {
    let all = |reason| PolicyError { line: 1, reason };
    let bytes = source.0.len();
    if bytes > MAX_POLICY_BYTES {
        return Err(all(format!(
            "the policy has {bytes} bytes and may have {MAX_POLICY_BYTES}"
        )));
    }
    let read: Text = toml::from_str(source.0)
        .map_err(|e| source.error(e.span().unwrap_or_default(), e.message().to_owned()))?;
    for (what, count, most) in [
        ("rules", read.rule.len(), MAX_RULES),
        ("routes", read.route.len(), MAX_ROUTES),
    ] {
        if count > most {
            return Err(all(format!("{count} {what} are more than {most}")));
        }
    }
    Ok(read)
}

impl NetworkPolicy {
    /// Reads a policy.
    ///
    /// # Errors
    /// The first error, and its line.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let source = Source(text);
        let read = read_text(&source)?;
        let rules = read.rule.iter().map(|rule| source.rule(rule));
        let routes = read.route.iter().map(|route| source.route(route));
        Ok(Self {
            default: source.one(&read.default)?,
            rules: rules.collect::<Result<_, _>>()?,
            routes: routes.collect::<Result<_, _>>()?,
            multicast: read.multicast,
        })
    }
}
