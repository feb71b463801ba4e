//! Which blocks hold which tokens: a radix tree over whole units of tokens, one root per salt. A unit is the least
//! number of tokens that fills whole blocks in every KV group.
//!
//! Whoever uses a path pins its last node, and with it every node above. What nobody pins can be evicted, from the
//! leaves inwards, least recently used first. The counts of what can be evicted, now or after the acknowledgement that
//! departed users wait for, are kept exact, so nothing is ever evicted in vain.

#[cfg(test)]
mod audit;

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;

#[cfg(test)]
use super::bugs::{self, Bug};

pub(super) type NodeId = u32;

/// Who pins a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// A running request.
    Live,
    /// A request that has left, until its last plan is acknowledged.
    Leaving,
}

/// A run of whole units below its parent.
#[derive(Clone, Debug, Default)]
struct Node {
    parent: NodeId,
    is_root: bool,
    /// `num_units * tokens_per_unit` token ids.
    ids: Vec<u32>,
    /// `num_units * blocks_per_unit` blocks.
    blocks: Vec<u32>,
    num_children: u32,
    /// Users of this node and of all below, by kind.
    live: u32,
    leaving: u32,
    last_use: u64,
    salt: u64,
}

/// How far a prompt is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    node: NodeId,
    /// Of the last node.
    units_in_node: usize,
    pub(super) num_units: usize,
    /// Of these, the ones that could be evicted now.
    pub(super) evictable: usize,
    /// Of these, the ones that could be evicted after an acknowledgement.
    pub(super) returning: usize,
}

/// A part of the tree that was taken out.
#[derive(Debug, Default)]
pub(super) struct Gone {
    pub(super) nodes: Vec<NodeId>,
    /// Where it was.
    pub(super) parent: NodeId,
}

/// All cached units.
#[derive(Debug)]
pub(super) struct Radix {
    tokens_per_unit: usize,
    blocks_per_unit: usize,
    nodes: Vec<Node>,
    unused: Vec<NodeId>,
    roots: HashMap<u64, NodeId>,
    /// By parent and hash of the first unit; the ids are compared whenever it is used.
    children: HashMap<(NodeId, u64), NodeId, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    /// Unpinned leaves.
    leaves: BTreeSet<(u64, NodeId)>,
    clock: u64,
    num_units: usize,
    num_evictable: usize,
    num_returning: usize,
}

impl Radix {
    pub(super) fn new(tokens_per_unit: usize, blocks_per_unit: usize) -> Self {
        Self {
            tokens_per_unit,
            blocks_per_unit,
            nodes: Vec::new(),
            unused: Vec::new(),
            roots: HashMap::new(),
            children: HashMap::default(),
            hasher: foldhash::fast::RandomState::default(),
            leaves: BTreeSet::new(),
            clock: 0,
            num_units: 0,
            num_evictable: 0,
            num_returning: 0,
        }
    }

    /// Units that nobody uses.
    pub(super) fn num_evictable(&self) -> usize {
        self.num_evictable
    }

    /// Units that only those use who have left.
    pub(super) fn num_returning(&self) -> usize {
        self.num_returning
    }

    /// The longest cached prefix of `ids`, at most `max_units` long. `None` if nothing is cached for the salt.
    pub(super) fn find(&self, salt: u64, ids: &[u32], max_units: usize) -> Option<Match> {
        let mut found = Match {
            node: *self.roots.get(&salt)?,
            units_in_node: 0,
            num_units: 0,
            evictable: 0,
            returning: 0,
        };
        while found.num_units < max_units {
            let rest = &ids[found.num_units * self.tokens_per_unit..];
            // Another unit may have the same hash.
            let next = self.child(found.node, rest);
            let Some((child, common)) = next.filter(|&(_, common)| common > 0) else {
                break;
            };
            let node = &self.nodes[child as usize];
            let common = common.min(max_units - found.num_units);
            found.node = child;
            found.units_in_node = common;
            found.num_units += common;
            match (node.live, node.leaving) {
                (0, 0) => found.evictable += common,
                (0, _) => found.returning += common,
                _ => (),
            }
            if common < self.units_of(child) {
                break;
            }
        }
        Some(found)
    }

    /// Pins a match for a running request; hands out its blocks in order, and its last node.
    pub(super) fn attach(&mut self, found: Match, mut blocks: impl FnMut(&[u32])) -> NodeId {
        let last = self.split(found.node, found.units_in_node);
        for &id in self.path(last).iter().rev() {
            blocks(&self.nodes[id as usize].blocks);
        }
        #[cfg(test)]
        if bugs::is(Bug::MissedReference) && found.num_units > 0 {
            return last;
        }
        self.pin(last);
        last
    }

    /// The root of a salt, pinned.
    pub(super) fn attach_root(&mut self, salt: u64) -> NodeId {
        let root = match self.roots.get(&salt) {
            Some(&root) => root,
            None => {
                let root = self.add_node(Node {
                    is_root: true,
                    salt,
                    ..Node::default()
                });
                self.roots.insert(salt, root);
                root
            }
        };
        self.pin(root);
        root
    }

    /// Moves the pin at the end of a path on over the first of these units, as many as are all new, or all there and used
    /// by nobody: then the blocks take the place of those, which are handed out. Tells how many units. `None`, and no
    /// move: the units are in use, and to pin them beside the request's own copy would take blocks from others; or
    /// another unit has the same hash.
    pub(super) fn advance(
        &mut self,
        node: NodeId,
        ids: &[u32],
        blocks: &[u32],
        unused: impl FnOnce(&[u32]),
    ) -> Option<(NodeId, usize)> {
        let count = ids.len() / self.tokens_per_unit;
        if let Some((child, common)) = self.child(node, ids) {
            let found = &self.nodes[child as usize];
            if common == 0 || found.live + found.leaving > 0 {
                return None;
            }
            let child = self.split(child, common);
            let blocks = blocks[..common * self.blocks_per_unit].to_vec();
            unused(&std::mem::replace(
                &mut self.nodes[child as usize].blocks,
                blocks,
            ));
            self.gain_live(child);
            return Some((child, common));
        }
        self.num_units += count;
        let end = &mut self.nodes[node as usize];
        if !end.is_root && end.num_children == 0 && end.live + end.leaving == 1 {
            end.ids.extend_from_slice(ids);
            end.blocks.extend_from_slice(blocks);
            return Some((node, count));
        }
        end.num_children += 1;
        let key = (node, self.hasher.hash_one(&ids[..self.tokens_per_unit]));
        let child = self.add_node(Node {
            parent: node,
            ids: ids.to_vec(),
            blocks: blocks.to_vec(),
            live: 1,
            ..Node::default()
        });
        self.children.insert(key, child);
        Some((child, count))
    }

    /// A running request has left; its pin stays until [`unpin`](Self::unpin).
    pub(super) fn start_leaving(&mut self, node: NodeId) {
        for id in self.path(node) {
            let node = &mut self.nodes[id as usize];
            node.live -= 1;
            node.leaving += 1;
            if node.live == 0 {
                self.num_returning += node.ids.len() / self.tokens_per_unit;
            }
        }
    }

    /// Undoes [`attach`](Self::attach), for a user of either kind.
    pub(super) fn unpin(&mut self, node: NodeId, user: User) {
        self.clock += 1;
        for id in self.path(node) {
            let units = self.units_of(id);
            let node = &mut self.nodes[id as usize];
            node.last_use = self.clock;
            match user {
                User::Live => node.live -= 1,
                User::Leaving => {
                    node.leaving -= 1;
                    if node.live == 0 && node.leaving == 0 {
                        self.num_returning -= units;
                    }
                }
            }
            match (node.live, node.leaving) {
                (0, 0) => {
                    self.num_evictable += units;
                    self.settle(id);
                }
                (0, _) if user == User::Live => self.num_returning += units,
                _ => (),
            }
        }
    }

    /// Evicts exactly `num_units` units, at most [`num_evictable`](Self::num_evictable); hands out their blocks.
    pub(super) fn evict(&mut self, mut num_units: usize, mut freed: impl FnMut(&[u32])) {
        while num_units > 0 {
            let Some(leaf) = self.oldest_leaf() else {
                debug_assert!(false, "the count of evictable units is exact");
                return;
            };
            let units = self.units_of(leaf);
            let count = units.min(num_units);
            num_units -= count;
            self.num_evictable = self.num_evictable.saturating_sub(count);
            self.num_units -= count;
            if count == units {
                freed(&self.remove(leaf).blocks);
            } else {
                let keep = units - count;
                let node = &mut self.nodes[leaf as usize];
                freed(&node.blocks[keep * self.blocks_per_unit..]);
                node.blocks.truncate(keep * self.blocks_per_unit);
                node.ids.truncate(keep * self.tokens_per_unit);
            }
        }
    }

    /// Takes out everything from unit `first` of the path on that ends at `node` with `end` units, and hands out the
    /// blocks. Pins on what is gone are pins on what is left of the path from now on.
    pub(super) fn take_out(
        &mut self,
        node: NodeId,
        end: usize,
        first: usize,
        mut freed: impl FnMut(&[u32]),
    ) -> Gone {
        let (mut top, mut start) = (node, end);
        loop {
            start -= self.units_of(top);
            if start <= first || self.nodes[top as usize].is_root {
                break;
            }
            top = self.nodes[top as usize].parent;
        }
        if first > start {
            // The lower part keeps the id.
            self.split(top, first - start);
        }
        let parent = self.nodes[top as usize].parent;
        let mut nodes = self.below(top);
        // Leaves first.
        nodes.reverse();
        for &id in &nodes {
            let units = self.units_of(id);
            let node = &self.nodes[id as usize];
            self.num_units -= units;
            match (node.live, node.leaving) {
                (0, 0) => self.num_evictable -= units,
                (0, _) => self.num_returning -= units,
                _ => (),
            }
            freed(&self.remove(id).blocks);
        }
        Gone { nodes, parent }
    }

    /// The node and all below it, parents first.
    fn below(&self, top: NodeId) -> Vec<NodeId> {
        let mut found = vec![top];
        if self.nodes[top as usize].num_children == 0 {
            return found;
        }
        let mut by_parent: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
        for (id, node) in (0..).zip(&self.nodes) {
            if !node.is_root && !node.ids.is_empty() {
                by_parent.entry(node.parent).or_default().push(id);
            }
        }
        let mut next = 0;
        while let Some(&id) = found.get(next) {
            found.extend(by_parent.remove(&id).unwrap_or_default());
            next += 1;
        }
        found
    }

    fn units_of(&self, node: NodeId) -> usize {
        self.nodes[node as usize].ids.len() / self.tokens_per_unit
    }

    /// From the node up to its root.
    fn path(&self, node: NodeId) -> Vec<NodeId> {
        let mut path = vec![node];
        let mut at = &self.nodes[node as usize];
        while !at.is_root {
            path.push(at.parent);
            at = &self.nodes[at.parent as usize];
        }
        path
    }

    /// The child that begins with the first unit of `ids`, and how many units they have in common.
    fn child(&self, parent: NodeId, ids: &[u32]) -> Option<(NodeId, usize)> {
        let first = ids.get(..self.tokens_per_unit)?;
        let key = (parent, self.hasher.hash_one(first));
        let child = *self.children.get(&key)?;
        let edge = &self.nodes[child as usize].ids;
        let common = common_prefix(edge, ids) / self.tokens_per_unit;
        Some((child, common))
    }

    fn pin(&mut self, node: NodeId) {
        for id in self.path(node) {
            self.gain_live(id);
        }
    }

    fn gain_live(&mut self, id: NodeId) {
        let units = self.units_of(id);
        let node = &mut self.nodes[id as usize];
        node.live += 1;
        match (node.live, node.leaving) {
            (1, 0) => {
                self.num_evictable -= units;
                self.leaves.remove(&(node.last_use, id));
            }
            (1, _) => self.num_returning -= units,
            _ => (),
        }
    }

    /// An unpinned node becomes a leaf to evict, or, an empty root, goes.
    fn settle(&mut self, id: NodeId) {
        let node = &self.nodes[id as usize];
        if node.num_children > 0 || node.live + node.leaving > 0 {
            return;
        }
        if node.is_root {
            self.roots.remove(&node.salt);
            self.nodes[id as usize] = Node::default();
            self.unused.push(id);
        } else {
            self.leaves.insert((node.last_use, id));
        }
    }

    fn oldest_leaf(&self) -> Option<NodeId> {
        #[cfg(test)]
        if bugs::is(Bug::EvictsPinned) {
            let leaves = (0..).zip(&self.nodes);
            let leaves = leaves.filter(|(_, node)| node.num_children == 0 && !node.ids.is_empty());
            return leaves
                .min_by_key(|(_, node)| node.last_use)
                .map(|(id, _)| id);
        }
        self.leaves.first().map(|&(_, id)| id)
    }

    /// The node that ends `at` units into this one: itself, or its upper part, which is split off. The lower part keeps
    /// the id, so pins at its end stay right.
    fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        if at == self.units_of(id) {
            return id;
        }
        let lower = &mut self.nodes[id as usize];
        let lower_ids = lower.ids.split_off(at * self.tokens_per_unit);
        let lower_blocks = lower.blocks.split_off(at * self.blocks_per_unit);
        let upper = Node {
            parent: lower.parent,
            is_root: false,
            ids: std::mem::replace(&mut lower.ids, lower_ids),
            blocks: std::mem::replace(&mut lower.blocks, lower_blocks),
            num_children: 1,
            live: lower.live,
            leaving: lower.leaving,
            last_use: lower.last_use,
            salt: 0,
        };
        let parent = upper.parent;
        let upper_id = self.add_node(upper);
        let tokens = self.tokens_per_unit;
        self.nodes[id as usize].parent = upper_id;
        let upper_key = (
            parent,
            self.hasher
                .hash_one(&self.nodes[upper_id as usize].ids[..tokens]),
        );
        let lower_key = (
            upper_id,
            self.hasher.hash_one(&self.nodes[id as usize].ids[..tokens]),
        );
        self.children.insert(upper_key, upper_id);
        self.children.insert(lower_key, id);
        upper_id
    }

    fn add_node(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.unused.pop() {
            self.nodes[id as usize] = node;
            return id;
        }
        let id = NodeId::try_from(self.nodes.len()).expect("there are fewer nodes than blocks");
        self.nodes.push(node);
        id
    }

    /// Takes out a node without children; its parent may become a leaf.
    fn remove(&mut self, id: NodeId) -> Node {
        let node = std::mem::take(&mut self.nodes[id as usize]);
        self.leaves.remove(&(node.last_use, id));
        let first = &node.ids[..self.tokens_per_unit];
        let key = (node.parent, self.hasher.hash_one(first));
        self.children.remove(&key);
        self.unused.push(id);
        self.nodes[node.parent as usize].num_children -= 1;
        self.settle(node.parent);
        node
    }
}

pub(super) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    // In chunks the comparison is vectorised.
    const CHUNK: usize = 64;
    let chunks = a.chunks_exact(CHUNK).zip(b.chunks_exact(CHUNK));
    let equal = chunks.take_while(|(a, b)| a == b).count() * CHUNK;
    let rest = a[equal..].iter().zip(&b[equal..]);
    equal + rest.take_while(|(a, b)| a == b).count()
}
