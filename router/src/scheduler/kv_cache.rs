//! The KV cache as the scheduler sees it: which blocks a request holds, which of them the prefix cache shares with
//! others, and what could be had now or soon. Blocks come on demand. A block is always in exactly one place: free,
//! fenced, in the prefix cache, or private to one request.

use std::collections::VecDeque;

use super::blocks::BlockPool;
#[cfg(test)]
use super::bugs::{self, Bug};
use super::limits::GroupLimits;
use super::radix::{Gone, Match, NodeId, Radix, User};
use super::step::Seat;

/// The blocks of one request.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Where its path through the prefix cache ends, `cached_units` long. `None`: it has none.
    cursor: Option<NodeId>,
    /// The path has become shorter; no more is known of the units that were on it.
    is_lost: bool,
    cached_units: usize,
    /// Block table per KV group.
    tables: Vec<Vec<u32>>,
}

impl Hold {
    #[cfg(test)]
    pub(super) fn path(&self) -> Option<NodeId> {
        self.cursor
    }

    pub(super) fn cached_units(&self) -> usize {
        self.cached_units
    }

    /// The block table of a group.
    pub(super) fn table(&self, group: usize) -> &[u32] {
        &self.tables[group]
    }

    /// True if the end of the path is gone. The request must be computed again: some of its blocks are nobody's now.
    pub(super) fn lose_path(&mut self, gone: &Gone) -> bool {
        let lost = self
            .cursor
            .is_some_and(|cursor| gone.nodes.contains(&cursor));
        if lost {
            self.cursor = Some(gone.parent);
            self.is_lost = true;
        }
        lost
    }

    /// Blocks of a group that are not the cache's, in the order of the table.
    pub(super) fn private_blocks(&self, group: usize, blocks_per_unit: usize) -> Vec<u32> {
        self.tables[group][self.cached_units * blocks_per_unit..].to_vec()
    }

    pub(super) fn num_private(&self, group: usize, blocks_per_unit: usize) -> usize {
        self.tables[group].len() - self.cached_units * blocks_per_unit
    }
}

/// A request that has left, until its last plan is acknowledged.
#[derive(Debug)]
struct Departed {
    fence: u64,
    seat: Seat,
    hold: Hold,
    written: Written,
}

/// How many positions of a request are good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// It found them in the cache.
    pub(super) cached: u32,
    /// Those, and what acknowledged plans have written.
    pub(super) acknowledged: u32,
}

/// All blocks of all KV groups.
#[derive(Debug)]
pub(super) struct KvCache {
    shares: bool,
    tokens_per_unit: usize,
    pools: Vec<BlockPool>,
    tree: Radix,
    /// Fences never fall from front to back.
    departed: VecDeque<Departed>,
}

impl KvCache {
    /// With `shares` off no block is ever used twice.
    pub(super) fn new(groups: &[GroupLimits], shares: bool) -> Self {
        let sizes = groups.iter().map(|group| group.tokens_per_block as usize);
        let tokens_per_unit = sizes.clone().fold(1, least_common_multiple);
        let pools = groups.iter().zip(sizes).map(|(group, size)| {
            BlockPool::new(
                group.tokens_per_block,
                tokens_per_unit / size,
                group.num_blocks,
            )
        });
        let blocks_per_unit = groups
            .iter()
            .map(|group| tokens_per_unit / group.tokens_per_block as usize);
        Self {
            shares,
            tokens_per_unit,
            tree: Radix::new(tokens_per_unit, blocks_per_unit.sum()),
            pools: pools.collect(),
            departed: VecDeque::new(),
        }
    }

    pub(super) fn tokens_per_unit(&self) -> usize {
        self.tokens_per_unit
    }

    pub(super) fn pools(&self) -> &[BlockPool] {
        &self.pools
    }

    /// Blocks of a group that could be taken now.
    pub(super) fn num_available(&self, group: usize) -> usize {
        let pool = &self.pools[group];
        pool.num_free() + self.tree.num_evictable() * pool.blocks_per_unit
    }

    /// Blocks of a group that acknowledgements to come will make available.
    pub(super) fn num_pending(&self, group: usize) -> usize {
        let pool = &self.pools[group];
        pool.num_fenced() + self.tree.num_returning() * pool.blocks_per_unit
    }

    /// Blocks that running requests refer to, in all groups.
    pub(super) fn num_used(&self) -> usize {
        let groups = 0..self.pools.len();
        let idle = groups.map(|group| self.num_available(group) + self.num_pending(group));
        self.num_blocks() - idle.sum::<usize>()
    }

    /// Blocks that are kept for prompts to come, in all groups.
    pub(super) fn num_cached(&self) -> usize {
        let pools = self.pools.iter();
        pools.map(|pool| pool.blocks_per_unit).sum::<usize>() * self.tree.num_evictable()
    }

    /// Without the scratch blocks.
    pub(super) fn num_blocks(&self) -> usize {
        self.pools.iter().map(BlockPool::total).sum()
    }

    /// The longest cached prefix that leaves at least one token to feed.
    pub(super) fn find(&self, salt: u64, ids: &[u32]) -> Option<Match> {
        if !self.shares {
            return None;
        }
        let most = ids.len() - 1;
        #[cfg(test)]
        let most = most + usize::from(bugs::is(Bug::FullHitWrites));
        self.tree.find(salt, ids, most / self.tokens_per_unit)
    }

    /// Blocks of a group that a request takes out of what is available when it grows to `tokens` positions after a hit.
    pub(super) fn cost(&self, group: usize, tokens: usize, hit: Option<Match>) -> usize {
        let pool = &self.pools[group];
        let units = hit.map_or(0, |hit| hit.num_units - hit.evictable);
        pool.blocks_for(tokens)
            .saturating_sub(units * pool.blocks_per_unit)
    }

    /// What a new request holds: the blocks of its hit. `added(group, index, block)` for each.
    pub(super) fn open(
        &mut self,
        salt: u64,
        hit: Option<Match>,
        mut added: impl FnMut(u32, u32, u32),
    ) -> Hold {
        let mut hold = Hold {
            tables: vec![Vec::new(); self.pools.len()],
            ..Hold::default()
        };
        if !self.shares {
            return hold;
        }
        let Some(hit) = hit else {
            hold.cursor = Some(self.tree.attach_root(salt));
            return hold;
        };
        let (tables, pools) = (&mut hold.tables, &self.pools);
        let cursor = self.tree.attach(hit, |blocks| {
            for_each_block(pools, blocks, |group, block| {
                added(number(group), number(tables[group].len()), block);
                tables[group].push(block);
            });
        });
        hold.cursor = Some(cursor);
        hold.cached_units = hit.num_units;
        hold
    }

    /// Whether a request may grow to `tokens` positions while `keep(group)` blocks stay available to others.
    pub(super) fn has_room(
        &self,
        hold: &Hold,
        tokens: usize,
        keep: impl Fn(usize) -> usize,
    ) -> bool {
        (0..self.pools.len()).all(|group| {
            let need = self.growth(hold, group, tokens);
            need == 0 || need + keep(group) <= self.num_available(group)
        })
    }

    /// Blocks that a group lacks for `tokens` positions.
    pub(super) fn growth(&self, hold: &Hold, group: usize, tokens: usize) -> usize {
        let have = hold.tables[group].len();
        self.pools[group].blocks_for(tokens).saturating_sub(have)
    }

    /// Takes the blocks, evicting what is needed; the caller has seen that there is room. `added(group, index, block)`
    /// for each.
    pub(super) fn grow(
        &mut self,
        hold: &mut Hold,
        tokens: usize,
        mut added: impl FnMut(u32, u32, u32),
    ) {
        let units = (0..self.pools.len()).map(|group| {
            let pool = &self.pools[group];
            let missing = self
                .growth(hold, group, tokens)
                .saturating_sub(pool.num_free());
            missing.div_ceil(pool.blocks_per_unit)
        });
        if let Some(units) = units.max().filter(|&units| units > 0) {
            let pools = &mut self.pools;
            self.tree.evict(units, |blocks| {
                // Evicted from the end of a path on, so that its blocks come back in reverse.
                for_each_block_mut(pools, blocks, |pool, block| {
                    pool.put_back([block].into_iter());
                });
            });
        }
        for (group, table) in hold.tables.iter_mut().enumerate() {
            let pool = &mut self.pools[group];
            for index in table.len()..pool.blocks_for(tokens) {
                let block = pool.take().expect("the caller has seen that there is room");
                table.push(block);
                added(number(group), number(index), block);
            }
        }
    }

    /// The request's tokens up to the end of `ids` are in blocks that a sent plan fills; `ids` begins where the request's
    /// cached units end and holds whole units.
    pub(super) fn publish(&mut self, hold: &mut Hold, mut ids: &[u32]) {
        while let Some(cursor) = hold.cursor
            && !hold.is_lost
            && !ids.is_empty()
        {
            let num_units = ids.len() / self.tokens_per_unit;
            let mut blocks = Vec::new();
            for unit in hold.cached_units..hold.cached_units + num_units {
                for (pool, table) in self.pools.iter().zip(&hold.tables) {
                    let count = pool.blocks_per_unit;
                    blocks.extend_from_slice(&table[unit * count..(unit + 1) * count]);
                }
            }
            let pools = &mut self.pools;
            let advanced = self.tree.advance(cursor, ids, &blocks, |unused| {
                for_each_block_mut(pools, unused, |pool, block| {
                    pool.put_back([block].into_iter());
                });
            });
            let Some((cursor, count)) = advanced else {
                return;
            };
            hold.cursor = Some(cursor);
            hold.cached_units += count;
            ids = &ids[count * self.tokens_per_unit..];
        }
    }

    /// The request gets no more rows: its path counts as pending from now on.
    pub(super) fn start_leaving(&mut self, hold: &Hold) {
        if let Some(cursor) = hold.cursor {
            self.tree.start_leaving(cursor);
        }
    }

    /// Takes everything back after [`start_leaving`](Self::start_leaving). Private blocks are free, and shared ones
    /// unpinned, when plan `fence` is acknowledged.
    pub(super) fn leave(&mut self, hold: Hold, seat: Seat, fence: u64, written: Written) {
        for (group, pool) in self.pools.iter_mut().enumerate() {
            let blocks = hold.private_blocks(group, pool.blocks_per_unit);
            #[cfg(test)]
            if bugs::is(Bug::FreeAtFinish) {
                pool.put_back(blocks.into_iter());
                continue;
            }
            pool.put_back_after(fence, blocks);
        }
        let after = self.departed.partition_point(|other| other.fence <= fence);
        let departed = Departed {
            fence,
            seat,
            hold,
            written,
        };
        self.departed.insert(after, departed);
    }

    /// Plan `plan_id` and all before it have been executed.
    pub(super) fn acknowledge(&mut self, plan_id: u64) {
        for pool in &mut self.pools {
            pool.acknowledge(plan_id);
        }
        while self
            .departed
            .front()
            .is_some_and(|front| front.fence <= plan_id)
        {
            let front = self.departed.pop_front().expect("the front was just seen");
            if let Some(cursor) = front.hold.cursor {
                self.tree.unpin(cursor, User::Leaving);
            }
        }
    }

    /// A row has failed: what its request wrote from position `num_written` on is void, and so is everything that was
    /// computed from it. The blocks wait for plan `fence`. Returns what is gone, for [`Hold::lose_path`].
    pub(super) fn void(&mut self, hold: &Hold, num_written: usize, fence: u64) -> Gone {
        let first = num_written / self.tokens_per_unit;
        let Some(cursor) = hold.cursor else {
            return Gone::default();
        };
        if hold.is_lost || first >= hold.cached_units {
            return Gone::default();
        }
        #[cfg(test)]
        if bugs::is(Bug::KeepsProvisional) {
            return Gone::default();
        }
        let pools = &mut self.pools;
        let gone = self
            .tree
            .take_out(cursor, hold.cached_units, first, |blocks| {
                for_each_block_mut(pools, blocks, |pool, block| {
                    pool.put_back_after(fence, vec![block]);
                });
            });
        for departed in &mut self.departed {
            departed.hold.lose_path(&gone);
        }
        gone
    }

    /// The row of a request that has left went well up to this position.
    pub(super) fn departed_wrote(&mut self, seat: Seat, num_written: u32) {
        if let Some(departed) = self.departed.iter_mut().find(|left| left.seat == seat) {
            departed.written.acknowledged = num_written;
        }
    }

    /// [`void`](Self::void) for a request that has left, of what acknowledged plans did not write or of all that it wrote.
    pub(super) fn departed_failed(&mut self, seat: Seat, all: bool, fence: u64) -> Gone {
        let Some(index) = self.departed.iter().position(|left| left.seat == seat) else {
            return Gone::default();
        };
        let Written {
            cached,
            acknowledged,
        } = self.departed[index].written;
        let num_good = if all { cached } else { acknowledged };
        let hold = std::mem::take(&mut self.departed[index].hold);
        let gone = self.void(&hold, num_good as usize, fence);
        self.departed[index].hold = hold;
        self.departed[index].hold.lose_path(&gone);
        gone
    }

    #[cfg(test)]
    pub(super) fn tree(&self) -> &Radix {
        &self.tree
    }

    /// Where the paths of those end who have left.
    #[cfg(test)]
    pub(super) fn departed_paths(&self) -> Vec<NodeId> {
        let departed = self.departed.iter();
        departed.filter_map(|left| left.hold.cursor).collect()
    }
}

/// `each(group, block)` for blocks as the tree keeps them: unit by unit, in a unit group by group.
fn for_each_block(pools: &[BlockPool], blocks: &[u32], mut each: impl FnMut(usize, u32)) {
    let mut rest = blocks.iter();
    while !rest.as_slice().is_empty() {
        for (group, pool) in pools.iter().enumerate() {
            for &block in rest.by_ref().take(pool.blocks_per_unit) {
                each(group, block);
            }
        }
    }
}

fn for_each_block_mut(
    pools: &mut [BlockPool],
    blocks: &[u32],
    mut each: impl FnMut(&mut BlockPool, u32),
) {
    let mut rest = blocks.iter();
    while !rest.as_slice().is_empty() {
        for pool in pools.iter_mut() {
            for &block in rest.by_ref().take(pool.blocks_per_unit) {
                each(pool, block);
            }
        }
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("groups and block tables are short of 2^32 entries")
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
