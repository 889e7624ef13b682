//! The routing table: an immutable snapshot of a member's neighbours, for the threads that carry packets.
//!
//! Greedy routing (Kleinberg 2000): a packet goes to the neighbour that is closest to its destination if that is closer than we are. As
//! closeness falls with every hop and no two places are equally close, a packet visits no member twice, whatever the tables of the
//! others say. Members that have not joined yet (leaves) end a path and never carry one on.

use super::{
    position::{Node, Position, Range},
    wire::{Header, Mode},
};
use crate::id::MemberId;

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// It is for us.
    Here,
    /// This neighbour takes it on.
    Via(MemberId),
    /// There is nobody to give it to.
    Nowhere,
}

/// A member's neighbours, sorted by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    me: Node,
    joined: bool,
    members: Box<[Node]>,
    leaves: Box<[Node]>,
}

impl Table {
    /// The table of `me`. `joined`: whether we carry packets of others. `members`: neighbours that do, `leaves`: those that do not.
    pub fn new(me: MemberId, joined: bool, members: impl IntoIterator<Item = Node>, leaves: impl IntoIterator<Item = Node>) -> Self {
        let me = Node::from(me);
        let sorted = |mut nodes: Vec<Node>| {
            nodes.retain(|n| n.position != me.position);
            nodes.sort_unstable();
            nodes.dedup_by_key(|n| n.position);
            nodes.into_boxed_slice()
        };
        Self { me, joined, members: sorted(members.into_iter().collect()), leaves: sorted(leaves.into_iter().collect()) }
    }

    /// Whose it is.
    pub fn me(&self) -> Node {
        self.me
    }

    /// Whether we carry packets of others.
    pub fn joined(&self) -> bool {
        self.joined
    }

    /// The neighbours that carry packets on, sorted by position.
    pub fn members(&self) -> &[Node] {
        &self.members
    }

    /// The neighbours that have not joined yet, sorted by position.
    pub fn leaves(&self) -> &[Node] {
        &self.leaves
    }

    /// Where a packet of our own to `to` goes first. While we have not joined it goes to the neighbour closest to `to` in any case, as nobody
    /// finds us by routing and we are nobody's closest.
    pub fn next(&self, to: Position, mode: Mode) -> Next {
        if to == self.me.position {
            return Next::Here;
        }
        self.leaf(to).or_else(|| self.towards(to, None, !self.joined)).map_or(here(mode), Next::Via)
    }

    /// Where a packet of another member goes on, or that it ends here. The caller takes the hop off ([`super::wire::take_hop`]).
    pub fn route(&self, header: &Header) -> Next {
        if header.to == self.me.position && header.kind.mode() == Mode::Exact {
            return match header.leaf.filter(|leaf| *leaf != self.me.position) {
                None => Next::Here,
                Some(leaf) => self.leaf(leaf).or_else(|| find(&self.members, leaf)).map_or(Next::Nowhere, Next::Via),
            };
        }
        let via = match header.kind.mode() {
            // One that has not joined carries nothing on, but answers what its neighbours ask, so that joiners find each other.
            _ if !self.joined => None,
            Mode::Exact => self.leaf(header.to).or_else(|| self.towards(header.to, None, false)),
            Mode::Closest => self.towards(header.to, Some(header.from), false),
        };
        match (via, header.hops_left) {
            (None, _) => here(header.kind.mode()),
            (Some(_), 0) => Next::Nowhere,
            (Some(member), _) => Next::Via(member),
        }
    }

    /// Where a lookup of our own for the member closest to our own place goes first: as if we were not there.
    pub fn next_around(&self, to: Position) -> Option<MemberId> {
        self.towards(to, None, true)
    }

    /// Divides the members in `range` among our neighbours inside it: every neighbour gets the part that lies around it, and the parts are
    /// disjoint. What lies between us and the neighbours beside us belongs to those. As every member has its true neighbours on both
    /// sides, asking on in the same way reaches every member of the range once (bounded broadcast; Boykin et al. 2006).
    pub fn split(&self, range: Range) -> Vec<(MemberId, Range)> {
        if range.contains(self.me.position) {
            let mut parts = self.split_side(Range { before: self.me.position, ..range });
            parts.extend(self.split_side(Range { after: self.me.position, ..range }));
            parts
        } else {
            self.split_side(range)
        }
    }

    fn split_side(&self, range: Range) -> Vec<(MemberId, Range)> {
        let mut inside: Vec<Node> = self.members.iter().copied().filter(|n| range.contains(n.position)).collect();
        inside.sort_unstable_by_key(|n| range.after.clockwise(n.position));
        let mut after = range.after;
        let mut parts = Vec::with_capacity(inside.len());
        for (i, node) in inside.iter().enumerate() {
            let middle = inside.get(i + 1).map(|next| node.position.plus(node.position.clockwise(next.position) / 2));
            parts.push((node.member, Range { after, before: middle.map_or(range.before, |m| m.plus(1)) }));
            after = middle.unwrap_or(range.before);
        }
        parts
    }

    fn leaf(&self, at: Position) -> Option<MemberId> {
        find(&self.leaves, at)
    }

    /// The neighbour closest to `to`, without `except`; closer than we are, or `anyhow`.
    fn towards(&self, to: Position, except: Option<Position>, anyhow: bool) -> Option<MemberId> {
        let count = self.members.len();
        let split = self.members.partition_point(|n| n.position < to);
        // The closest is the first on one of the two sides; the second where the first is excepted.
        let around = [split + count * 2, split + 1 + count * 2, split + count * 2 - 1, split + count * 2 - 2];
        let candidates = around.into_iter().filter_map(|i| self.members.get(i.checked_rem(count)?));
        let best = candidates.filter(|n| Some(n.position) != except).min_by_key(|n| to.closeness(n.position))?;
        (anyhow || to.closeness(best.position) < to.closeness(self.me.position)).then_some(best.member)
    }
}

fn here(mode: Mode) -> Next {
    if mode == Mode::Closest { Next::Here } else { Next::Nowhere }
}

fn find(nodes: &[Node], at: Position) -> Option<MemberId> {
    nodes.binary_search_by_key(&at, |n| n.position).ok().map(|i| nodes[i].member)
}
