//! What the tests look at: every cached unit, and every count recounted.

use std::collections::BTreeSet;

use super::{NodeId, Radix};

impl Radix {
    /// Every cached unit of every salt: the ids of its path up to its end, and its blocks.
    pub(in crate::scheduler) fn units(&self) -> Vec<(u64, Vec<u32>, Vec<u32>)> {
        let mut units = Vec::new();
        for (id, node) in (0..).zip(&self.nodes) {
            if node.ids.is_empty() {
                continue;
            }
            let path = self.path(id);
            let root = path[path.len() - 1];
            let mut ids: Vec<u32> = Vec::new();
            for above in path[1..].iter().rev() {
                ids.extend(&self.nodes[*above as usize].ids);
            }
            let edge = node.ids.chunks(self.tokens_per_unit);
            for (unit, blocks) in edge.zip(node.blocks.chunks(self.blocks_per_unit)) {
                ids.extend(unit);
                let salt = self.nodes[root as usize].salt;
                units.push((salt, ids.clone(), blocks.to_vec()));
            }
        }
        units
    }

    /// Every count is what these users make it, and every leaf that can be evicted is listed.
    pub(in crate::scheduler) fn audit(&self, live: &[NodeId], leaving: &[NodeId]) {
        let mut users = vec![(0, 0); self.nodes.len()];
        for &node in live {
            self.path(node)
                .iter()
                .for_each(|&id| users[id as usize].0 += 1);
        }
        for &node in leaving {
            self.path(node)
                .iter()
                .for_each(|&id| users[id as usize].1 += 1);
        }
        let (mut num_units, mut evictable, mut returning) = (0, 0, 0);
        let mut leaves = BTreeSet::new();
        for (id, node) in (0..).zip(&self.nodes) {
            assert_eq!(
                (node.live, node.leaving),
                users[id as usize],
                "users of node {id}"
            );
            let units = self.units_of(id);
            num_units += units;
            match users[id as usize] {
                (0, 0) if units > 0 => {
                    evictable += units;
                    if node.num_children == 0 {
                        leaves.insert((node.last_use, id));
                    }
                }
                (0, 0) => assert!(node.num_children > 0 || self.unused.contains(&id)),
                (0, _) => returning += units,
                _ => (),
            }
        }
        assert_eq!(self.num_units, num_units, "units");
        assert_eq!(self.num_evictable, evictable, "evictable units");
        assert_eq!(self.num_returning, returning, "returning units");
        assert_eq!(self.leaves, leaves, "leaves");
        let children: u32 = self.nodes.iter().map(|node| node.num_children).sum();
        assert_eq!(self.children.len(), children as usize, "children");
    }
}
