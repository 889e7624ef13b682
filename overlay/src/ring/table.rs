//! The routing table: an immutable snapshot of a member's neighbours, for the threads that carry
//! packets.
//!
//! Greedy routing (Kleinberg 2000): a packet goes to the neighbour that is closest to its
//! destination if that is closer than we are. As closeness falls with every hop and no two places
//! are equally close, a packet visits no member twice, whatever the tables of the others say.
//! Members that have not joined yet (leaves) end a path and never carry one on.

use super::{
    position::{Node, Position, Range},
    wire::{Header, Mode},
};
use crate::id::MemberId;

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RingHop {
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
    /// The table of `me`. `joined`: whether we carry packets of others. `members`: neighbours that
    /// do, `leaves`: those that do not.
    pub fn new(
        me: MemberId,
        joined: bool,
        members: impl IntoIterator<Item = Node>,
        leaves: impl IntoIterator<Item = Node>,
    ) -> Self {
        Self::of(
            Node::from(me),
            joined,
            members.into_iter().collect(),
            leaves.into_iter().collect(),
        )
    }

    /// The same, of nodes that have been gathered.
    pub(super) fn of(me: Node, joined: bool, members: Vec<Node>, leaves: Vec<Node>) -> Self {
        let sorted = |mut nodes: Vec<Node>| {
            nodes.retain(|n| n.position != me.position);
            nodes.sort_unstable();
            nodes.dedup_by_key(|n| n.position);
            // Reason: look-ups halve the list. With two nodes out of order a packet would take a
            // way that is not the closest, and no error would say so.
            assert!(
                nodes.is_sorted_by(|a, b| a.position < b.position),
                "a table's places ascend, each once"
            );
            nodes.into_boxed_slice()
        };
        Self {
            me,
            joined,
            members: sorted(members),
            leaves: sorted(leaves),
        }
    }

    /// Whether it has this node among those that carry packets, or among the leaves.
    pub(super) fn has(&self, node: &Node, carries: bool) -> bool {
        let nodes = if carries { &self.members } else { &self.leaves };
        find(nodes, node.position).is_some()
    }

    /// The nodes that carry packets, and those that do not.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Node, bool)> {
        let members = self.members.iter().map(|n| (n, true));
        members.chain(self.leaves.iter().map(|n| (n, false)))
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

    /// Where a packet of our own to `to` goes first. While we have not joined it goes to the
    /// neighbour closest to `to` in any case, as nobody finds us by routing and we are nobody's
    /// closest.
    pub fn next(&self, to: Position, mode: Mode) -> RingHop {
        if to == self.me.position {
            return RingHop::Here;
        }
        self.leaf(to)
            .or_else(|| self.towards(to, None, !self.joined))
            .map_or(here(mode), RingHop::Via)
    }

    /// Where a packet of another member goes on, or that it ends here. The caller takes the hop off
    /// ([`super::wire::take_hop`]).
    pub fn route(&self, header: &Header) -> RingHop {
        if header.kind.mode() == Mode::Exact
            && (header.to == self.me.position || header.leaf == Some(self.me.position))
        {
            return match header.leaf.filter(|leaf| *leaf != self.me.position) {
                None => RingHop::Here,
                Some(leaf) => self
                    .leaf(leaf)
                    .or_else(|| find(&self.members, leaf))
                    .map_or(RingHop::Nowhere, RingHop::Via),
            };
        }
        let via = match header.kind.mode() {
            // One that has not joined carries nothing on, but answers what its neighbours ask, so
            // that joiners find each other.
            _ if !self.joined => None,
            // Never back to its source: one that came by its source's agent has none closer than
            // the source where an edge of the source is missing, and goes around the gap, on the
            // way that the source's lookup went.
            Mode::Exact => self
                .leaf(header.to)
                .or_else(|| self.towards(header.to, Some(header.from), false)),
            Mode::Closest => self.towards(header.to, Some(header.from), false),
        };
        match (via, header.hops_left) {
            (None, _) => here(header.kind.mode()),
            (Some(_), 0) => RingHop::Nowhere,
            (Some(member), _) => RingHop::Via(member),
        }
    }

    /// Divides the members in `range` among our neighbours inside it: every neighbour gets the part
    /// that lies around it, and the parts are disjoint. What lies between us and the neighbours
    /// beside us belongs to those. As every member has its true neighbours on both sides, asking on
    /// in the same way reaches every member of the range once (bounded broadcast; Boykin et al.
    /// 2006).
    pub fn split(&self, range: Range) -> Vec<(MemberId, Range)> {
        self.split_without(range, &[])
    }

    /// As [`Table::split`], as if `dead` were no neighbours.
    pub fn split_without(&self, range: Range, dead: &[MemberId]) -> Vec<(MemberId, Range)> {
        if range.contains(self.me.position) {
            let mut parts = self.split_side(
                Range {
                    before: self.me.position,
                    ..range
                },
                dead,
            );
            parts.extend(self.split_side(
                Range {
                    after: self.me.position,
                    ..range
                },
                dead,
            ));
            parts
        } else {
            self.split_side(range, dead)
        }
    }

    /// The neighbour closest to `to` if that is closer than we are, as if `dead` were no
    /// neighbours.
    pub fn nearer(&self, to: Position, dead: &[MemberId]) -> Option<MemberId> {
        let alive = self.members.iter().filter(|n| !dead.contains(&n.member));
        let best = alive.min_by_key(|n| to.closeness(n.position))?;
        (to.closeness(best.position) < to.closeness(self.me.position)).then_some(best.member)
    }

    fn split_side(&self, range: Range, dead: &[MemberId]) -> Vec<(MemberId, Range)> {
        let asked = |n: &&Node| range.contains(n.position) && !dead.contains(&n.member);
        let mut inside: Vec<Node> = self.members.iter().filter(asked).copied().collect();
        inside.sort_unstable_by_key(|n| range.after.clockwise(n.position));
        let mut after = range.after;
        let mut parts = Vec::with_capacity(inside.len());
        for (i, node) in inside.iter().enumerate() {
            let middle = inside.get(i + 1).map(|next| {
                node.position
                    .plus(node.position.clockwise(next.position) / 2)
            });
            parts.push((
                node.member,
                Range {
                    after,
                    before: middle.map_or(range.before, |m| m.plus(1)),
                },
            ));
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
        let around = [0, 1, count.saturating_sub(1), (2 * count).saturating_sub(2)];
        let candidates = around
            .into_iter()
            .filter_map(|i| self.members.get((split + i).checked_rem(count)?));
        let best = candidates
            .filter(|n| Some(n.position) != except)
            .min_by_key(|n| to.closeness(n.position))?;
        (anyhow || to.closeness(best.position) < to.closeness(self.me.position))
            .then_some(best.member)
    }
}

fn here(mode: Mode) -> RingHop {
    if mode == Mode::Closest {
        RingHop::Here
    } else {
        RingHop::Nowhere
    }
}

fn find(nodes: &[Node], at: Position) -> Option<MemberId> {
    nodes
        .binary_search_by_key(&at, |n| n.position)
        .ok()
        .map(|i| nodes[i].member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::wire::Kind;
    use proptest::{collection::vec, prelude::*};

    fn table(me: u8, others: &[u8], leaves: &[u8]) -> Table {
        let nodes = |ids: &[u8]| {
            ids.iter()
                .map(|n| Node::from(MemberId([*n; 32])))
                .collect::<Vec<_>>()
        };
        Table::new(MemberId([me; 32]), true, nodes(others), nodes(leaves))
    }

    fn at(n: u8) -> Position {
        Position::of(&MemberId([n; 32]))
    }

    fn hop_to(n: u8) -> RingHop {
        match n {
            0 => RingHop::Here,
            n => RingHop::Via(MemberId([n; 32])),
        }
    }

    proptest! {
        #[test]
        fn the_next_hop_is_the_closest_and_closer_than_ourselves(
            others in vec(1u8.., 0..20), target: u64, except in 1u8..
        ) {
            let table = table(0, &others, &[]);
            let target = Position(target);
            let all = || others.iter().copied().chain([0]);
            let best = all().min_by_key(|n| target.closeness(at(*n))).expect("we are there");
            let expected = hop_to(best);
            prop_assert_eq!(table.next(target, Mode::Closest), expected);
            // A lookup is routed as if its asker were not there.
            let header = Header::new(Kind::ControlClosest, at(except), target);
            let others = all().filter(|n| *n != except);
            let best = others.min_by_key(|n| target.closeness(at(*n))).expect("we are there");
            let expected = match best {
                0 => RingHop::Here,
                best => RingHop::Via(MemberId([best; 32])),
            };
            prop_assert_eq!(table.route(&header), expected);
        }

        #[test]
        fn the_parts_of_a_split_are_disjoint_and_each_holds_its_member(
            others in vec(1u8.., 0..20), after: u64, before: u64, places in vec(any::<u64>(), 50)
        ) {
            let table = table(0, &others, &[]);
            let range = Range { after: Position(after), before: Position(before) };
            let parts = table.split(range);
            let others: std::collections::BTreeSet<u8> = others.into_iter().collect();
            prop_assert_eq!(parts.len(), others.iter().filter(|n| range.contains(at(**n))).count());
            for (member, part) in &parts {
                prop_assert!(
                    part.contains(Position::of(member))
                        && part.within(&range)
                        && !part.contains(at(0))
                );
            }
            let places = places.into_iter().map(Position).chain(others.iter().map(|n| at(*n)));
            for place in places.filter(|p| range.contains(*p) && *p != at(0)) {
                let holders = parts.iter().filter(|(_, part)| part.contains(place)).count();
                prop_assert!(holders <= 1);
                // Only where we have no neighbour on a side of us is there nobody on it to ask.
                prop_assert!(holders == 1 || parts.is_empty() || range.contains(at(0)));
            }
        }
    }

    #[test]
    fn a_leaf_ends_a_path_and_never_carries_one_on() {
        let table = table(0, &[], &[1]);
        assert_eq!(
            table.next(at(1), Mode::Exact),
            RingHop::Via(MemberId([1; 32]))
        );
        assert_eq!(table.next(at(1).plus(1), Mode::Exact), RingHop::Nowhere);
        assert_eq!(table.next(at(1).plus(1), Mode::Closest), RingHop::Here);
        let header = Header {
            leaf: Some(at(1)),
            ..Header::new(Kind::Datagram, at(9), at(0))
        };
        assert_eq!(table.route(&header), RingHop::Via(MemberId([1; 32])));
        assert_eq!(
            table.route(&Header {
                leaf: Some(at(2)),
                ..header
            }),
            RingHop::Nowhere
        );
    }

    #[test]
    fn what_an_agent_carries_goes_around_a_missing_edge_of_its_source() {
        let node = |n: u64| Node {
            position: Position(n << 32),
            member: MemberId([n as u8; 32]),
        };
        // We are at 50, the source is at 20; it and the destination at 10 have no edge with each
        // other.
        let table = Table {
            me: node(50),
            joined: true,
            members: [node(9), node(20)].into(),
            leaves: [].into(),
        };
        let header = Header::new(Kind::Call, node(20).position, node(10).position);
        assert_eq!(table.route(&header), RingHop::Via(node(9).member));
        let table = Table {
            members: [node(20), node(90)].into(),
            ..table
        };
        assert_eq!(
            table.route(&header),
            RingHop::Nowhere,
            "never back and never away"
        );
    }

    #[test]
    fn who_has_not_joined_sends_by_its_neighbours_and_carries_nothing_on() {
        let other = Node::from(MemberId([1; 32]));
        let table = Table::new(MemberId([0; 32]), false, [other], []);
        assert_eq!(
            table.next(at(0).plus(1), Mode::Exact),
            RingHop::Via(other.member)
        );
        assert_eq!(
            table.route(&Header::new(Kind::Datagram, at(9), at(1))),
            RingHop::Nowhere
        );
        assert_eq!(
            table.route(&Header::new(Kind::ControlClosest, at(9), at(1))),
            RingHop::Here
        );
        let header = Header {
            leaf: Some(at(0)),
            ..Header::new(Kind::Answer, at(9), at(1))
        };
        assert_eq!(
            table.route(&header),
            RingHop::Here,
            "what our agent hands us is ours"
        );
    }

    #[test]
    fn a_packet_without_hops_left_goes_no_further() {
        let table = table(0, &[1], &[]);
        let header = Header {
            hops_left: 0,
            ..Header::new(Kind::Datagram, at(9), at(1))
        };
        assert_eq!(table.route(&header), RingHop::Nowhere);
        assert_eq!(
            table.route(&Header {
                to: at(0),
                ..header
            }),
            RingHop::Here
        );
    }
}
