//! Blocks of one KV group: which are free, and which wait for the acknowledgement of a plan that may still touch them
//! (the fence).

use std::collections::VecDeque;

/// Blocks that wait for the acknowledgement of plan `fence`.
#[derive(Debug)]
struct Fenced {
    fence: u64,
    blocks: Vec<u32>,
}

/// Block 0 is scratch for padded and failed rows and is never handed out.
#[derive(Debug)]
pub(super) struct BlockPool {
    pub(super) tokens_per_block: usize,
    /// Of one unit of the prefix cache.
    pub(super) blocks_per_unit: usize,
    total: usize,
    free: Vec<u32>,
    /// Fences never fall from front to back.
    fenced: VecDeque<Fenced>,
    num_fenced: usize,
}

impl BlockPool {
    /// A pool of blocks 1 to `total`.
    pub(super) fn new(tokens_per_block: u32, blocks_per_unit: usize, total: u32) -> Self {
        Self {
            tokens_per_block: tokens_per_block as usize,
            blocks_per_unit,
            total: total as usize,
            // Popped from the end: low numbers first, and the block freed last is used next.
            free: (1..=total).rev().collect(),
            fenced: VecDeque::new(),
            num_fenced: 0,
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

    pub(super) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn num_fenced(&self) -> usize {
        self.num_fenced
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Free at once; the first of them is used next.
    pub(super) fn put_back(&mut self, blocks: impl DoubleEndedIterator<Item = u32>) {
        self.free.extend(blocks.rev());
    }

    /// Free once plan `fence` is acknowledged.
    pub(super) fn put_back_after(&mut self, fence: u64, blocks: Vec<u32>) {
        if blocks.is_empty() {
            return;
        }
        self.num_fenced += blocks.len();
        let after = self.fenced.partition_point(|other| other.fence <= fence);
        self.fenced.insert(after, Fenced { fence, blocks });
    }

    /// Plan `plan_id` and all before it have been executed.
    pub(super) fn acknowledge(&mut self, plan_id: u64) {
        while self
            .fenced
            .front()
            .is_some_and(|front| front.fence <= plan_id)
        {
            let front = self.fenced.pop_front().expect("the front was just seen");
            self.num_fenced -= front.blocks.len();
            self.put_back(front.blocks.into_iter());
        }
    }

    /// Every block that is free or fenced, for the tests' inventory.
    #[cfg(test)]
    pub(super) fn idle_blocks(&self) -> (Vec<u32>, Vec<(u64, u32)>) {
        let fenced = self.fenced.iter();
        let fenced =
            fenced.flat_map(|entry| entry.blocks.iter().map(|&block| (entry.fence, block)));
        (self.free.clone(), fenced.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_return_after_the_fence_whatever_the_order_they_came_in() {
        let mut pool = BlockPool::new(4, 1, 3);
        let taken: Vec<u32> = (0..3).map_while(|_| pool.take()).collect();
        assert_eq!(taken, [1, 2, 3]);
        assert_eq!(pool.take(), None);
        pool.put_back_after(5, vec![1]);
        pool.put_back_after(3, vec![2]);
        pool.acknowledge(2);
        assert_eq!((pool.num_free(), pool.num_fenced()), (0, 2));
        pool.acknowledge(3);
        assert_eq!(pool.idle_blocks(), (vec![2], vec![(5, 1)]));
        pool.acknowledge(5);
        assert_eq!(pool.take(), Some(1), "the block freed last is used next");
    }
}
