//! The block pool of the baselines: a prefix is a chain of hashed blocks, and blocks that nobody uses stay until others
//! need them, the one that was left longest ago first (of one request the last block first).

use std::collections::{BTreeMap, HashMap};

use super::machine::{BLOCK_SIZE, TOKENS_PER_BLOCK};
use super::trace::{Job, mix};

#[derive(Debug)]
struct Resident {
    users: u32,
    /// Its place in `idle` while nobody uses it.
    stamp: u64,
}

#[derive(Debug)]
pub(crate) struct Blocks {
    total: usize,
    private: usize,
    resident: HashMap<u64, Resident>,
    idle: BTreeMap<u64, u64>,
    last_stamp: u64,
}

/// What one request holds.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Hashes of blocks that others may share.
    shared: Vec<u64>,
    private: usize,
}

impl Held {
    pub(crate) fn len(&self) -> usize {
        self.shared.len() + self.private
    }
}

impl Blocks {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            private: 0,
            resident: HashMap::new(),
            idle: BTreeMap::new(),
            last_stamp: 0,
        }
    }

    /// Free, or in use by nobody.
    pub(crate) fn available(&self) -> usize {
        self.total - self.private - self.resident.len() + self.idle.len()
    }

    /// Leading blocks that are here, and how many of these nobody uses.
    pub(crate) fn find(&self, hashes: &[u64]) -> (usize, usize) {
        let found = hashes.iter().map_while(|hash| self.resident.get(hash));
        let users: Vec<u32> = found.map(|block| block.users).collect();
        (
            users.len(),
            users.iter().filter(|&&users| users == 0).count(),
        )
    }

    /// Uses the blocks, which are here.
    pub(crate) fn share(&mut self, held: &mut Held, hashes: &[u64]) {
        for &hash in hashes {
            let block = self.resident.get_mut(&hash).expect("it was found");
            if block.users == 0 {
                self.idle.remove(&block.stamp);
            }
            block.users += 1;
            held.shared.push(hash);
        }
    }

    /// Takes blocks until the request has `count`; false: there are too few.
    pub(crate) fn grow(&mut self, held: &mut Held, count: usize) -> bool {
        let missing = count.saturating_sub(held.len());
        if missing > self.available() {
            return false;
        }
        while self.total - self.private - self.resident.len() < missing {
            let (_, hash) = self.idle.pop_first().expect("enough is available");
            self.resident.remove(&hash);
        }
        self.private += missing;
        held.private += missing;
        true
    }

    /// One of the request's own blocks is full; it stays the request's own if there is another like it.
    pub(crate) fn publish(&mut self, held: &mut Held, hash: u64) {
        if self.resident.contains_key(&hash) {
            return;
        }
        self.private -= 1;
        held.private -= 1;
        held.shared.push(hash);
        let block = Resident { users: 1, stamp: 0 };
        self.resident.insert(hash, block);
    }

    pub(crate) fn release(&mut self, held: Held) {
        self.private -= held.private;
        for hash in held.shared.into_iter().rev() {
            let block = self.resident.get_mut(&hash).expect("it was in use");
            block.users -= 1;
            if block.users == 0 {
                self.last_stamp += 1;
                block.stamp = self.last_stamp;
                self.idle.insert(self.last_stamp, hash);
            }
        }
    }
}

pub(crate) fn blocks_for(tokens: u32) -> usize {
    (tokens as usize).div_ceil(TOKENS_PER_BLOCK)
}

/// Extends the chain of full blocks of a request to its first `tokens` tokens.
pub(crate) fn extend_chain(chain: &mut Vec<u64>, job: &Job, tokens: u32) {
    let size = BLOCK_SIZE;
    for block in u32::try_from(chain.len()).expect("it is short")..tokens / size {
        let before = chain.last().copied().unwrap_or(0);
        let positions = block * size..(block + 1) * size;
        chain.push(positions.fold(before, |hash, at| mix(hash ^ u64::from(job.token(at)))));
    }
}
