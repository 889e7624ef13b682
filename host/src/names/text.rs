//! The text of a `resolv.conf` (resolv.conf(5)) with lines of ours in it, and without.
//!
//! Every network of this machine has one [`Block`]: a comment with its owner and purpose, and a
//! `nameserver` line, both right before the first name server that was there. So the first line
//! stays as it was (openresolv signs files by it), and daemons that share only this text agree on
//! it: [`render`] of what [`parse`] gives is the text again. Bytes, not characters: everything else
//! in the file stays as it is.
//!
//! Two things in other lines would send questions past us. With `options rotate` the servers are
//! asked by turns: such a line is replaced by the same one without that word. And the C library
//! musl asks all servers at once and takes the first answer: with `alone` the other `nameserver`
//! lines become comments. [`parse`] recognizes and undoes both.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    str,
};

const MARK: &str = "# p2pvm ";
const WHY: &str = ": this line and the next go when p2pvm ends, or with 'p2pvm down'";
/// Marks another program's line that must not be read now.
const HIDDEN: &[u8] = b"#p2pvm# ";
/// The mark of versions that had one network a machine.
const OLD_MARK: &[u8] =
    b"# The next line is p2pvm's; it goes when its daemon ends, or with 'p2pvm down'.";
const DNS_PORT: u16 = 53;

/// The lines of one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// The owner: a word that is unique among this machine's daemons.
    pub id: String,
    /// The address of its resolver, on port 53.
    pub server: Ipv4Addr,
    /// The domain of its names.
    pub domain: String,
    /// Its addresses, whose reverse names belong to it too.
    pub subnets: Vec<(IpAddr, u8)>,
    /// If the file was missing before: how many directories above it were missing too.
    pub made: Option<u8>,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{} {}", self.id, self.domain)?;
        for (first, bits) in &self.subnets {
            write!(f, " {first}/{bits}")?;
        }
        if let Some(directories) = self.made {
            write!(f, " made={directories}")?;
        }
        writeln!(f, "{WHY}\nnameserver {}", self.server)
    }
}

impl Block {
    /// Parses a marking line and the line after it.
    fn read(mark: &[u8], next: Option<&[u8]>) -> Option<Self> {
        let words = str::from_utf8(mark)
            .ok()?
            .trim_end()
            .strip_prefix(MARK)?
            .strip_suffix(WHY)?;
        let mut words = words.split(' ');
        let (id, domain) = (words.next()?.to_owned(), words.next()?.to_owned());
        let Some(IpAddr::V4(server)) = name_server(next?).map(|server| server.ip) else {
            return None;
        };
        let mut block = Self {
            id,
            server,
            domain,
            subnets: Vec::new(),
            made: None,
        };
        for word in words {
            if let Some(directories) = word.strip_prefix("made=") {
                block.made = directories.parse().ok();
            } else if let Some((first, bits)) = word.split_once('/')
                && let (Ok(first), Ok(bits)) = (first.parse(), bits.parse())
            {
                block.subnets.push((first, bits));
            }
        }
        Some(block)
    }
}

/// A `nameserver` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Its address.
    pub ip: IpAddr,
    /// The interface after the `%` of a link-local address.
    pub scope: Option<String>,
}

impl NameServer {
    /// Its address; `None` if its interface is missing.
    pub fn address(&self) -> Option<SocketAddr> {
        match (self.ip, &self.scope) {
            (IpAddr::V6(ip), Some(scope)) => {
                let index = scope
                    .parse()
                    .ok()
                    .or_else(|| nix::net::if_::if_nametoindex(scope.as_str()).ok())?;
                Some(SocketAddrV6::new(ip, DNS_PORT, 0, index).into())
            }
            (ip, _) => Some(SocketAddr::new(ip, DNS_PORT)),
        }
    }
}

/// The words of a line that begins with `keyword`, right at its beginning, as the C libraries read
/// it.
fn words<'a>(line: &'a [u8], keyword: &str) -> Option<impl Iterator<Item = &'a [u8]>> {
    let rest = line.strip_prefix(keyword.as_bytes())?;
    rest.first().filter(|byte| byte.is_ascii_whitespace())?;
    Some(
        rest.split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty()),
    )
}

fn name_server(line: &[u8]) -> Option<NameServer> {
    let word = str::from_utf8(words(line, "nameserver")?.next()?).ok()?;
    let (ip, scope) = word
        .split_once('%')
        .map_or((word, None), |(ip, scope)| (ip, Some(scope.to_owned())));
    Some(NameServer {
        ip: ip.parse().ok()?,
        scope,
    })
}

fn is_name_server(line: &[u8]) -> bool {
    words(line, "nameserver").is_some()
}

/// The replacement for an `options` line that has the word "rotate"; empty if nothing is left.
fn without_rotate(line: &[u8]) -> Option<Vec<u8>> {
    let all: Vec<&[u8]> = words(line, "options")?.collect();
    let kept: Vec<&[u8]> = all
        .iter()
        .copied()
        .filter(|word| *word != b"rotate")
        .collect();
    if kept.len() == all.len() {
        return None;
    }
    if kept.is_empty() {
        return Some(Vec::new());
    }
    Some([b"options ".as_slice(), &kept.join(&b' '), b"\n"].concat())
}

/// A file's text in two parts: other lines, and ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The text without our lines.
    pub original: Vec<u8>,
    /// The lines of this machine's networks.
    pub blocks: Vec<Block>,
}

/// Separates other lines from ours.
pub fn parse(text: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').peekable();
    // The start of the last line kept: it may turn out to replace a hidden one.
    let mut last = 0;
    while let Some(line) = lines.next() {
        if line.trim_ascii_end() == OLD_MARK {
            lines.next_if(|next| is_name_server(next));
        } else if line.starts_with(MARK.as_bytes())
            && line.trim_ascii_end().ends_with(WHY.as_bytes())
        {
            let block = Block::read(line, lines.peek().copied());
            if let Some(block) = block {
                lines.next();
                parsed.blocks.push(block);
            }
        } else if let Some(hidden) = line.strip_prefix(HIDDEN) {
            let stands_for_it = without_rotate(hidden)
                .filter(|instead| !instead.is_empty() && *instead == parsed.original[last..]);
            if stands_for_it.is_some() {
                parsed.original.truncate(last);
            }
            last = parsed.original.len();
            parsed.original.extend_from_slice(hidden);
        } else {
            last = parsed.original.len();
            parsed.original.extend_from_slice(line);
        }
    }
    parsed.blocks.sort();
    parsed.blocks.dedup_by(|a, b| a.id == b.id);
    parsed
}

/// The text with our lines; without blocks it is the original.
pub fn render(parsed: &Parsed, alone: bool) -> Vec<u8> {
    if parsed.blocks.is_empty() {
        return parsed.original.clone();
    }
    let mut blocks = parsed.blocks.clone();
    blocks.sort();
    let ours: String = blocks.iter().map(ToString::to_string).collect();
    let mut text = Vec::with_capacity(parsed.original.len() + ours.len());
    let mut inserted = false;
    for line in parsed.original.split_inclusive(|byte| *byte == b'\n') {
        if is_name_server(line) && !inserted {
            text.extend_from_slice(ours.as_bytes());
            inserted = true;
        }
        if is_name_server(line) && alone {
            text.extend_from_slice(HIDDEN);
        } else if let Some(instead) = without_rotate(line) {
            text.extend_from_slice(&instead);
            text.extend_from_slice(HIDDEN);
        }
        text.extend_from_slice(line);
    }
    if !inserted {
        // Never after a line without a line end, which would get one.
        let at = if text.last().is_none_or(|byte| *byte == b'\n') {
            text.len()
        } else {
            0
        };
        text.splice(at..at, ours.bytes());
    }
    text
}

/// The name servers of a text, in order.
pub fn name_servers(text: &[u8]) -> Vec<NameServer> {
    text.split(|byte| *byte == b'\n')
        .filter_map(name_server)
        .collect()
}

/// The domains that names without a dot are searched in; the last such line counts.
pub fn search(text: &[u8]) -> Vec<String> {
    let lines = text.split(|byte| *byte == b'\n');
    let domains = |line| {
        let words: Vec<&[u8]> = match (words(line, "search"), words(line, "domain")) {
            (Some(all), _) => all.collect(),
            (None, Some(one)) => one.take(1).collect(),
            (None, None) => return None,
        };
        Some(
            words
                .into_iter()
                .filter_map(|word| str::from_utf8(word).ok())
                .map(str::to_owned)
                .collect(),
        )
    };
    lines.filter_map(domains).next_back().unwrap_or_default()
}

/// Whether name servers are asked by turns.
pub fn rotates(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n')
        .any(|line| without_rotate(line).is_some())
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
