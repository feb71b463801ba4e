//! A naive model of the KV cache: what every slot of every block holds, by the plans alone. It knows nothing of trees,
//! pins or counts, and objects to whatever would make somebody read another's tokens.

use std::collections::HashMap;

use crate::scheduler::step::{Append, Plan, Row, Seat};

/// A block of a KV group.
type BlockId = (u32, u32);

/// What was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    token: u32,
    position: u32,
    by: Seat,
    plan: u64,
}

#[derive(Debug, Default)]
struct Block {
    slots: HashMap<u32, Written>,
    /// The last plan that reads or writes it.
    touched: u64,
    /// Seats in whose table it stands.
    users: u32,
}

/// A registered seat.
#[derive(Debug)]
struct Occupant {
    seat: Seat,
    tables: Vec<Vec<u32>>,
    num_fed: u32,
    has_row: bool,
}

/// All blocks and seats.
#[derive(Debug)]
pub(super) struct Memory {
    tokens_per_block: Vec<u32>,
    blocks: HashMap<BlockId, Block>,
    occupants: HashMap<u32, Occupant>,
    pub(super) acknowledged: u64,
    /// The last plan that names a seat.
    last_named: HashMap<u32, u64>,
}

impl Memory {
    pub(super) fn new(tokens_per_block: Vec<u32>) -> Self {
        Self {
            tokens_per_block,
            blocks: HashMap::new(),
            occupants: HashMap::new(),
            acknowledged: 0,
            last_named: HashMap::new(),
        }
    }

    /// Frees, registrations and appends of a plan with these rows.
    pub(super) fn edit(&mut self, plan: &Plan, rows: &[Row]) {
        for seat in &plan.frees {
            self.last_named.insert(seat.index, plan.id);
            let left = self.occupants.remove(&seat.index).expect("it was seated");
            assert_eq!(left.seat, *seat);
            for (group, table) in (0..).zip(&left.tables) {
                for &block in table {
                    self.block(group, block).users -= 1;
                }
            }
        }
        for registration in &plan.registrations {
            let seat = registration.seat;
            let named = self.last_named.insert(seat.index, plan.id).unwrap_or(0);
            assert!(named <= self.acknowledged, "{seat:?} before its fence");
            let occupant = Occupant {
                seat,
                tables: vec![Vec::new(); self.tokens_per_block.len()],
                num_fed: 0,
                has_row: false,
            };
            self.occupants.insert(seat.index, occupant);
        }
        for append in &plan.appends {
            self.append(append, rows);
        }
    }

    fn append(&mut self, append: &Append, rows: &[Row]) {
        let Append {
            seat,
            group,
            index,
            block,
        } = *append;
        let occupant = self.occupants.get_mut(&seat).expect("it is seated");
        let table = &mut occupant.tables[group as usize];
        assert_eq!(table.len(), index as usize, "tables grow at their end");
        table.push(block);
        let starts_at = rows.iter().find(|row| row.seat == seat);
        let starts_at = starts_at.and_then(|row| row.feed).map(|feed| feed.start);
        let first = index * self.tokens_per_block[group as usize];
        // Without a row in its first plan all that a seat gets comes from the cache.
        let is_hit = !occupant.has_row && starts_at.is_none_or(|start| first < start);
        let acknowledged = self.acknowledged;
        let state = self.block(group, block);
        state.users += 1;
        if !is_hit {
            assert_eq!(state.users, 1, "block {block} has two owners");
            let touched = state.touched;
            assert!(touched <= acknowledged, "block {block} before its fence");
            state.slots.clear();
        }
    }

    /// A row that computes these tokens, of a sequence whose tokens are `all`.
    pub(super) fn run(&mut self, plan_id: u64, row: &Row, tokens: &[u32], all: &[u32]) {
        let occupant = self.occupants.get_mut(&row.seat).expect("it is seated");
        let seat = occupant.seat;
        self.last_named.insert(row.seat, plan_id);
        let start = row.feed.map_or(occupant.num_fed, |feed| feed.start);
        let is_first = !std::mem::replace(&mut occupant.has_row, true);
        assert!(is_first || start == occupant.num_fed, "{seat:?} feeds on");
        occupant.num_fed = start + u32::try_from(tokens.len()).unwrap();
        let tables = occupant.tables.clone();
        for (group, table) in (0..).zip(&tables) {
            let size = self.tokens_per_block[group as usize];
            for &block in table {
                self.block(group, block).touched = plan_id;
            }
            let cached = if is_first { start } else { 0 };
            for position in 0..cached {
                let block = self.block(group, table[(position / size) as usize]);
                let slot = block.slots.get(&(position % size));
                let slot = slot.unwrap_or_else(|| panic!("{seat:?} reads an empty slot"));
                assert_eq!(slot.position, position, "{seat:?} hits another position");
                assert_eq!(
                    slot.token, all[position as usize],
                    "{seat:?} hits another token"
                );
                assert!(slot.plan < plan_id, "{seat:?} hits what is not yet written");
            }
            for (&token, position) in tokens.iter().zip(start..) {
                assert_eq!(
                    token, all[position as usize],
                    "{seat:?} feeds another token"
                );
                let number = table[(position / size) as usize];
                let block = self.block(group, number);
                assert_eq!(block.users, 1, "{seat:?} writes shared block {number}");
                let written = Written {
                    token,
                    position,
                    by: seat,
                    plan: plan_id,
                };
                block.slots.insert(position % size, written);
            }
        }
    }

    /// The seat's row of this plan failed: what it wrote since is void.
    #[expect(clippy::iter_over_hash_type, reason = "each block by itself")]
    pub(super) fn void(&mut self, seat: Seat, plan_id: u64) {
        for block in self.blocks.values_mut() {
            block
                .slots
                .retain(|_, written| written.by != seat || written.plan < plan_id);
        }
    }

    /// The blocks of a cached unit hold the tokens that the cache claims; `ids` begins at position 0.
    pub(super) fn check_cached(&mut self, ids: &[u32], num_tokens: u32, blocks: &[u32]) {
        let end = u32::try_from(ids.len()).unwrap();
        let mut rest = blocks.iter();
        for group in 0..u32::try_from(self.tokens_per_block.len()).unwrap() {
            let size = self.tokens_per_block[group as usize];
            let blocks = rest.by_ref().take((num_tokens / size) as usize);
            for (&block, first) in blocks.zip((end - num_tokens..end).step_by(size as usize)) {
                for position in first..first + size {
                    let slot = self.block(group, block).slots.get(&(position % size));
                    let slot = slot.map(|written| (written.token, written.position));
                    let claimed = (ids[position as usize], position);
                    assert_eq!(slot, Some(claimed), "block {block} of group {group}");
                }
            }
        }
    }

    fn block(&mut self, group: u32, block: u32) -> &mut Block {
        self.blocks.entry((group, block)).or_default()
    }
}
