//! The network's names over DNS: `<host>.<network>.p2p` and `<vm>.vm.<network>.p2p`, forward and
//! reverse. Authoritative for these. Other names are refused, so that a stub resolver asks its next
//! server; those that the host itself asks for are forwarded to its previous servers
//! ([`Upstream`]). Over UDP and TCP ([`serve`]), as some stub resolvers use only TCP
//! (resolv.conf(5), `use-vc`).

mod cached;
mod forward;
mod host;
mod serve;
mod wire;

pub use cached::CachedNames;
pub use forward::Upstream;
pub use host::HostResolver;
pub use serve::{Sockets, serve};
pub use wire::Carrier;

use wire::HEADER_BYTES;

use crate::{
    Error,
    claim::Addresses,
    entry::{NameEntry, NameKind, is_name},
    subnet::Subnet,
};
use async_trait::async_trait;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SOA},
    },
};
use std::net::{IpAddr, Ipv6Addr};

/// How many seconds others may cache an answer.
/// Reason: addresses seldom change.
const TTL_SECONDS: u32 = 60;

/// How many seconds others may cache that a name is unknown.
/// Reason: it may soon be created.
const NEGATIVE_TTL_SECONDS: u32 = 5;

const MAX_QUERY_BYTES: usize = 1232;

/// The names cannot be looked up now.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("names cannot be looked up")]
pub struct Unavailable(#[from] pub Error);

/// The source of the answers. [`Addresses`] implements it over the DHT.
#[async_trait]
pub trait Names: Send + Sync + 'static {
    /// What a name stands for.
    async fn forward(&self, kind: NameKind, label: &str) -> Result<Option<NameEntry>, Unavailable>;

    /// The name of an address.
    async fn reverse(&self, ip: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable>;
}

#[async_trait]
impl Names for Addresses {
    async fn forward(&self, kind: NameKind, label: &str) -> Result<Option<NameEntry>, Unavailable> {
        Ok(self.resolve_name(label, kind).await?)
    }

    async fn reverse(&self, ip: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        let holder = self.resolve(ip).await?;
        Ok(holder.map(|h| (h.subject().kind(), h.name)))
    }
}

/// Answers queries about one network's domain.
#[derive(Clone, Debug)]
pub struct Resolver {
    domain: Name,
    subnet: Subnet,
    v6_prefix: Option<(Ipv6Addr, u8)>,
    upstream: Upstream,
}

/// The text is no domain name.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a domain name")]
pub struct NotADomain(String);

/// What a question is about.
enum QuestionTarget {
    /// `<label>.<domain>` or `<label>.vm.<domain>`.
    Name(NameKind, String),
    /// The name of an address of the network.
    Address(IpAddr),
    /// The domain itself or `vm.<domain>`: they exist and have no addresses.
    Zone,
    /// A name of the network that cannot exist.
    Nothing,
    /// A name outside the network.
    Elsewhere,
}

impl Resolver {
    /// A resolver for `domain` (`<network>.p2p`) and for reverse lookups within `subnet`.
    ///
    /// # Errors
    /// [`NotADomain`] if `domain` is no name.
    pub fn new(domain: &str, subnet: Subnet) -> Result<Self, NotADomain> {
        let mut name = Name::from_ascii(domain.to_ascii_lowercase())
            .map_err(|_| NotADomain(domain.to_owned()))?;
        if name.num_labels() == 0 {
            return Err(NotADomain(domain.to_owned()));
        }
        name.set_fqdn(true);
        Ok(Self {
            domain: name,
            subnet,
            v6_prefix: None,
            upstream: Upstream::default(),
        })
    }

    /// Answers reverse lookups within this IPv6 prefix too.
    pub fn with_v6(mut self, prefix: Ipv6Addr, bits: u8) -> Self {
        self.v6_prefix = Some((prefix, bits.min(128)));
        self
    }

    /// The servers that the host's own questions about other names go to; empty at first.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The name in a question that is not about this network.
    fn elsewhere(&self, query: &[u8]) -> Option<Name> {
        let message = Message::from_vec(query).ok()?;
        let asked = &message.metadata;
        let [question] = message.queries.as_slice() else {
            return None;
        };
        let is_query = asked.message_type == MessageType::Query && asked.op_code == OpCode::Query;
        (is_query && matches!(self.classify(question.name()), QuestionTarget::Elsewhere))
            .then(|| question.name().clone())
    }

    /// Forwards a question of the host's own programs about a name outside the network.
    async fn pass_on(&self, name: &Name, query: &[u8], carrier: Carrier) -> Vec<u8> {
        match self.upstream.ask(name, query, carrier).await {
            Some(answer) => wire::fitted(answer, query, carrier),
            None => self.failed(query),
        }
    }

    /// The answer that no server could be asked. It holds the question, as a stub resolver ignores
    /// an answer without it.
    fn failed(&self, query: &[u8]) -> Vec<u8> {
        let Ok(message) = Message::from_vec(query) else {
            return Vec::new();
        };
        let mut reply = Message::response(message.metadata.id, OpCode::Query);
        reply.metadata.recursion_desired = message.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = ResponseCode::ServFail;
        reply.add_queries(message.queries);
        reply.to_vec().unwrap_or_default()
    }

    /// The answer to a DNS message; empty for a response or a message without a header.
    pub async fn answer(&self, query: &[u8], names: &dyn Names) -> Vec<u8> {
        let Some((id, is_response)) = query
            .get(..HEADER_BYTES)
            .map(|h| (u16::from_be_bytes([h[0], h[1]]), h[2] & 0x80 != 0))
        else {
            return Vec::new();
        };
        if is_response {
            return Vec::new();
        }
        let parsed = if query.len() > MAX_QUERY_BYTES {
            None
        } else {
            Message::from_vec(query).ok()
        };
        let mut reply = match parsed {
            None => Message::error_msg(id, OpCode::Query, ResponseCode::FormErr),
            Some(query) => self.reply(query, names).await,
        };
        reply.metadata.truncation = false;
        // For the host's own programs recursion is available, and some stub resolvers want the
        // flag.
        reply.metadata.recursion_available = !self.upstream.get().is_empty();
        reply.to_vec().unwrap_or_default()
    }

    async fn reply(&self, query: Message, names: &dyn Names) -> Message {
        let asked = &query.metadata;
        let mut reply = Message::response(asked.id, asked.op_code);
        reply.metadata.recursion_desired = asked.recursion_desired;
        if let Some(edns) = &query.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(MAX_QUERY_BYTES as u16).set_version(0);
            reply.set_edns(ours);
            if edns.version() > 0 {
                reply.metadata.response_code = ResponseCode::BADVERS;
                return reply;
            }
        }
        reply.add_queries(query.queries.iter().cloned());
        reply.metadata.response_code = match (asked.op_code, query.queries.as_slice()) {
            (OpCode::Query, [question]) if question.query_class() == DNSClass::IN => {
                self.resolve(question, names, &mut reply).await
            }
            (OpCode::Query, [_]) => ResponseCode::Refused,
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        reply
    }

    async fn resolve(
        &self,
        question: &Query,
        names: &dyn Names,
        reply: &mut Message,
    ) -> ResponseCode {
        let (name, kind) = (question.name(), question.query_type());
        let found = match self.classify(name) {
            QuestionTarget::Elsewhere => return ResponseCode::Refused,
            QuestionTarget::Nothing => Ok(None),
            QuestionTarget::Zone => Ok(Some(self.zone_records(name, kind))),
            QuestionTarget::Name(of, label) => names
                .forward(of, &label)
                .await
                .map(|found| found.map(|named| address_records(name, kind, &named))),
            QuestionTarget::Address(ip) => names
                .reverse(ip)
                .await
                .map(|found| found.and_then(|named| self.pointer_records(name, kind, named))),
        };
        let Ok(found) = found else {
            return ResponseCode::ServFail;
        };
        reply.metadata.authoritative = true;
        let exists = found.is_some();
        reply.add_answers(found.unwrap_or_default());
        if reply.answers.is_empty() {
            reply.add_authority(self.authority());
        }
        if exists {
            ResponseCode::NoError
        } else {
            ResponseCode::NXDomain
        }
    }

    fn classify(&self, name: &Name) -> QuestionTarget {
        if !self.domain.zone_of(name) {
            let Ok(net) = name.parse_arpa_name() else {
                return QuestionTarget::Elsewhere;
            };
            return match net.addr() {
                ip if net.prefix_len() == net.max_prefix_len() && self.is_ours(ip) => {
                    QuestionTarget::Address(ip)
                }
                // Part of the way to an address of ours: it exists and has no records (RFC 8020).
                ip if self.covers(ip, net.prefix_len()) => QuestionTarget::Zone,
                _ => QuestionTarget::Elsewhere,
            };
        }
        let below = usize::from(name.num_labels().saturating_sub(self.domain.num_labels()));
        let labels: Option<Vec<String>> = name
            .iter()
            .take(below)
            .map(|l| std::str::from_utf8(l).ok().map(str::to_ascii_lowercase))
            .collect();
        match labels.as_deref() {
            Some([]) => QuestionTarget::Zone,
            Some([zone]) if zone == "vm" => QuestionTarget::Zone,
            Some([host]) if is_name(NameKind::Host, host) => {
                QuestionTarget::Name(NameKind::Host, host.clone())
            }
            Some([vm, zone]) if zone == "vm" && is_name(NameKind::Vm, vm) => {
                QuestionTarget::Name(NameKind::Vm, vm.clone())
            }
            _ => QuestionTarget::Nothing,
        }
    }

    /// Whether all addresses that begin with these bits are within the network.
    fn covers(&self, ip: IpAddr, bits: u8) -> bool {
        match (ip, self.v6_prefix) {
            (IpAddr::V4(v4), _) => bits >= self.subnet.prefix && self.subnet.contains(v4),
            (IpAddr::V6(_), Some((_, least))) => bits >= least && self.is_ours(ip),
            (IpAddr::V6(_), None) => false,
        }
    }

    fn is_ours(&self, ip: IpAddr) -> bool {
        match (ip, self.v6_prefix) {
            (IpAddr::V4(v4), _) => self.subnet.claimable(v4),
            (IpAddr::V6(v6), Some((prefix, bits))) => {
                (v6.to_bits() ^ prefix.to_bits()).leading_zeros() >= u32::from(bits)
            }
            (IpAddr::V6(_), None) => false,
        }
    }

    fn zone_records(&self, name: &Name, kind: RecordType) -> Vec<Record> {
        let wanted = name.num_labels() == self.domain.num_labels()
            && matches!(kind, RecordType::SOA | RecordType::ANY);
        if wanted {
            vec![self.authority()]
        } else {
            Vec::new()
        }
    }

    fn pointer_records(
        &self,
        name: &Name,
        kind: RecordType,
        (of, label): (NameKind, String),
    ) -> Option<Vec<Record>> {
        if !matches!(kind, RecordType::PTR | RecordType::ANY) {
            return Some(Vec::new());
        }
        let parent = match of {
            NameKind::Host => self.domain.clone(),
            NameKind::Vm => self.domain.prepend_label("vm").ok()?,
        };
        Some(vec![Record::from_rdata(
            name.clone(),
            TTL_SECONDS,
            RData::PTR(PTR(parent.prepend_label(label).ok()?)),
        )])
    }

    /// The zone's start of authority, which also says how long a negative answer holds (RFC 2308).
    fn authority(&self) -> Record {
        let ttl = NEGATIVE_TTL_SECONDS;
        let soa = SOA::new(
            self.domain.clone(),
            self.domain.clone(),
            1,
            3600,
            600,
            86400,
            ttl,
        );
        Record::from_rdata(self.domain.clone(), ttl, RData::SOA(soa))
    }
}

fn address_records(name: &Name, kind: RecordType, named: &NameEntry) -> Vec<Record> {
    let mut records = Vec::new();
    if matches!(kind, RecordType::A | RecordType::ANY) {
        records.push(Record::from_rdata(
            name.clone(),
            TTL_SECONDS,
            RData::A(A(named.v4)),
        ));
    }
    if let Some(v6) = named
        .v6
        .filter(|_| matches!(kind, RecordType::AAAA | RecordType::ANY))
    {
        records.push(Record::from_rdata(
            name.clone(),
            TTL_SECONDS,
            RData::AAAA(AAAA(v6)),
        ));
    }
    records
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
