//! Blocks of the KV cache, one pool per KV group. A [`Lease`] owns the blocks of one request; it must be handed back
//! with [`BlockPool::release`], which keeps the blocks out of use until the plan that may still write them is
//! acknowledged (the fence).
//!
//! Admission: a lease reserves the worst case of its request when it is made, as a number, and takes blocks as they
//! fill. The sum of all reservations never exceeds the pool, so a running request never waits for a block. This file is
//! the only place that knows that rule.

use std::collections::VecDeque;

/// Blocks of one request in one group, in the order of its block table.
#[derive(Debug)]
pub(super) struct Lease {
    blocks: Vec<u32>,
    reserved: usize,
}

#[cfg(test)]
impl Lease {
    /// The block table's entries.
    pub(super) fn blocks(&self) -> &[u32] {
        &self.blocks
    }
}

/// Blocks that wait for the acknowledgement of plan `fence`.
#[derive(Debug)]
struct Fenced {
    fence: u64,
    lease: Lease,
}

/// All blocks of one KV group. Block 0 is scratch for padded and failed rows and is never leased.
#[derive(Debug)]
pub(super) struct BlockPool {
    tokens_per_block: usize,
    total: usize,
    free: Vec<u32>,
    /// Fences never fall from front to back.
    fenced: VecDeque<Fenced>,
    num_fenced: usize,
    /// Sum over leases and fenced blocks; at most `total`.
    reserved: usize,
}

impl BlockPool {
    /// A pool of blocks 1 to `total`.
    pub(super) fn new(tokens_per_block: u32, total: u32) -> Self {
        Self {
            tokens_per_block: tokens_per_block as usize,
            total: total as usize,
            // Popped from the end: low numbers first, and the block freed last is used next.
            free: (1..=total).rev().collect(),
            fenced: VecDeque::new(),
            num_fenced: 0,
            reserved: 0,
        }
    }

    /// Blocks that `tokens` positions take.
    pub(super) fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.tokens_per_block)
    }

    /// Without the scratch block.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Blocks in leases.
    pub(super) fn used(&self) -> usize {
        self.total - self.free.len() - self.num_fenced
    }

    /// A lease without blocks yet that may grow to `tokens` positions; `None` while others' claims leave too little.
    pub(super) fn reserve(&mut self, tokens: usize) -> Option<Lease> {
        let need = self.blocks_for(tokens);
        if self.reserved + need > self.total {
            return None;
        }
        self.reserved += need;
        Some(Lease {
            blocks: Vec::new(),
            reserved: need,
        })
    }

    /// Gives back a reservation that never took a block.
    pub(super) fn unreserve(&mut self, lease: Lease) {
        let Lease { blocks, reserved } = lease;
        debug_assert!(blocks.is_empty(), "blocks go through the fence");
        self.reserved -= reserved;
    }

    /// Takes blocks until the lease covers `tokens` positions; `added(index, block)` for each.
    pub(super) fn grow(
        &mut self,
        lease: &mut Lease,
        tokens: usize,
        mut added: impl FnMut(u32, u32),
    ) {
        let need = self.blocks_for(tokens);
        assert!(
            need <= lease.reserved,
            "a request never outgrows what was reserved for it"
        );
        while lease.blocks.len() < need {
            let block = self
                .free
                .pop()
                .expect("reservations never exceed the pool, so a reserved block is free");
            let index =
                u32::try_from(lease.blocks.len()).expect("a block table is short of 2^32 entries");
            lease.blocks.push(block);
            added(index, block);
        }
    }

    /// Takes a lease back. Its blocks are free once plan `fence` is acknowledged, at once if `acknowledged` covers it.
    pub(super) fn release(&mut self, lease: Lease, fence: u64, acknowledged: u64) {
        if fence <= acknowledged {
            self.put_back(&lease);
            return;
        }
        self.num_fenced += lease.blocks.len();
        let after = self.fenced.partition_point(|other| other.fence <= fence);
        self.fenced.insert(after, Fenced { fence, lease });
    }

    /// Plan `plan_id` and all before it have been executed.
    pub(super) fn acknowledge(&mut self, plan_id: u64) {
        while self
            .fenced
            .front()
            .is_some_and(|front| front.fence <= plan_id)
        {
            let Fenced { fence: _, lease } =
                self.fenced.pop_front().expect("the front was just seen");
            self.num_fenced -= lease.blocks.len();
            self.put_back(&lease);
        }
    }

    fn put_back(&mut self, lease: &Lease) {
        self.reserved -= lease.reserved;
        self.free.extend(lease.blocks.iter().rev());
    }

    /// Every block that is free or fenced, for the tests' inventory.
    #[cfg(test)]
    pub(super) fn idle_blocks(&self) -> (Vec<u32>, Vec<(u64, u32)>) {
        let fenced = self
            .fenced
            .iter()
            .flat_map(|entry| entry.lease.blocks.iter().map(|&block| (entry.fence, block)))
            .collect();
        (self.free.clone(), fenced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_on_demand_and_return_after_the_fence() {
        let mut pool = BlockPool::new(4, 3);
        let mut lease = pool.reserve(9).unwrap();
        assert!(pool.reserve(1).is_none(), "all three blocks are spoken for");
        let mut added = Vec::new();
        pool.grow(&mut lease, 4, |index, block| added.push((index, block)));
        assert_eq!(added, [(0, 1)]);
        pool.grow(&mut lease, 5, |index, block| added.push((index, block)));
        assert_eq!(added, [(0, 1), (1, 2)]);
        assert_eq!(pool.used(), 2);

        pool.release(lease, 7, 6);
        assert_eq!(pool.used(), 0);
        assert!(
            pool.reserve(1).is_none(),
            "plan 7 may still write the blocks"
        );
        pool.acknowledge(6);
        assert!(pool.reserve(1).is_none());
        pool.acknowledge(7);
        assert!(pool.reserve(12).is_some());
    }

    #[test]
    fn fences_are_kept_in_order() {
        let mut pool = BlockPool::new(1, 2);
        let mut late = pool.reserve(1).unwrap();
        let mut early = pool.reserve(1).unwrap();
        pool.grow(&mut late, 1, |_, _| ());
        pool.grow(&mut early, 1, |_, _| ());
        pool.release(late, 5, 0);
        pool.release(early, 3, 0);
        pool.acknowledge(3);
        assert_eq!(pool.idle_blocks(), (vec![2], vec![(5, 1)]));
    }
}
