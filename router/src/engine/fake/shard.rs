//! A shard in miniature: seats, block tables and a paged pool that starts filled with NaN, run by plan blobs. Stricter
//! than a real one: what only a faulty router would order is an error here.

use std::collections::HashSet;

use super::model::{IntegerModel, Slot};
use crate::engine::{EngineInfo, blob};
use crate::scheduler::step::{
    Append, Extent, Plan, Registration, Row, RowResult, RowStatus, Rows, Seat, StepResult,
};

/// One KV group's cache.
#[derive(Debug)]
struct Pool {
    tokens_per_block: usize,
    slots: Vec<Slot>,
    /// In how many seats' tables a block stands.
    users: Vec<u32>,
}

impl Pool {
    fn slot(&mut self, table: &[u32], position: usize) -> &mut Slot {
        let block = table[position / self.tokens_per_block] as usize;
        &mut self.slots[block * self.tokens_per_block + position % self.tokens_per_block]
    }
}

/// A registered request.
#[derive(Debug)]
struct Occupant {
    registration: Registration,
    /// Per KV group.
    tables: Vec<Vec<u32>>,
    num_fed: u32,
    last_sampled: Option<u32>,
    dead: bool,
}

/// What a row came to.
struct Outcome {
    status: RowStatus,
    /// Token, and the most likely one.
    sampled: Option<(u32, u32)>,
}

/// All state of the fake's device.
#[derive(Debug)]
pub struct FakeShard {
    model: IntegerModel,
    pools: Vec<Pool>,
    seats: Vec<Option<Occupant>>,
    last_generations: Vec<u32>,
    lanes: HashSet<u32>,
    num_lanes: u32,
    max_rows: usize,
    max_tokens: usize,
    max_positions: u32,
    max_top_logprobs: u32,
    /// Rows that a plan with `SAME_ROWS` refers to.
    repeatable: Option<Vec<Row>>,
    last_plan_id: u64,
    /// Tokens that the last plan fed.
    num_fed: u32,
}

impl FakeShard {
    pub fn new(info: &EngineInfo, model: IntegerModel) -> Self {
        let pools = info.groups.iter().map(|group| Pool {
            tokens_per_block: group.tokens_per_block as usize,
            slots: vec![None; (group.tokens_per_block * group.num_blocks) as usize],
            users: vec![0; group.num_blocks as usize],
        });
        Self {
            model,
            pools: pools.collect(),
            seats: (0..info.num_seats).map(|_| None).collect(),
            last_generations: vec![0; info.num_seats as usize],
            lanes: HashSet::new(),
            num_lanes: info.num_penalty_lanes,
            max_rows: info.decode_sizes.last().copied().unwrap_or(0) as usize,
            max_tokens: info.mixed_sizes.last().copied().unwrap_or(0) as usize,
            max_positions: info.max_positions,
            max_top_logprobs: info.max_top_logprobs,
            repeatable: None,
            last_plan_id: 0,
            num_fed: 0,
        }
    }

    /// Tokens that the last plan fed.
    pub(super) fn num_fed(&self) -> u32 {
        self.num_fed
    }

    /// Runs one plan. An error ends the stream.
    pub fn execute(&mut self, plan_id: u64, blob: &[u8]) -> Result<StepResult, String> {
        if plan_id != self.last_plan_id + 1 {
            return Err(format!("plan {plan_id} after plan {}", self.last_plan_id));
        }
        self.last_plan_id = plan_id;
        let Plan {
            id: _,
            frees,
            registrations,
            appends,
            rows,
            feed_ids,
        } = blob::decode(plan_id, blob).map_err(|error| error.to_string())?;
        for seat in frees {
            self.free(seat)?;
        }
        for registration in registrations {
            self.register(registration)?;
        }
        for append in appends {
            self.append(append)?;
        }
        self.num_fed = u32::try_from(feed_ids.len()).map_err(|error| error.to_string())?;
        let rows = self.resolve(rows)?;
        let num_tokens = feed_ids.len() + rows.iter().filter(|row| row.feed.is_none()).count();
        if rows.len() > self.max_rows || (!feed_ids.is_empty() && num_tokens > self.max_tokens) {
            return Err(format!("{} rows, {num_tokens} tokens", rows.len()));
        }
        let mut result = StepResult {
            plan_id,
            ..StepResult::default()
        };
        let mut ids = feed_ids.as_slice();
        for row in rows {
            let fed = row.feed.map_or(0, |extent| extent.count as usize);
            let (own, rest) = ids.split_at(fed);
            ids = rest;
            self.run_row(row, own, &mut result)?;
        }
        Ok(result)
    }

    fn occupant(&mut self, seat: u32) -> Result<&mut Occupant, String> {
        self.seats
            .get_mut(seat as usize)
            .and_then(Option::as_mut)
            .ok_or_else(|| format!("seat {seat} is not registered"))
    }

    fn free(&mut self, seat: Seat) -> Result<(), String> {
        let occupant = self.occupant(seat.index)?;
        if occupant.registration.seat != seat {
            return Err(format!("free of {seat:?}, which is not the registered one"));
        }
        if let Some(lane) = occupant.registration.penalty_lane {
            self.lanes.remove(&lane);
        }
        let left = self.seats[seat.index as usize].take();
        let tables = left.into_iter().flat_map(|occupant| occupant.tables);
        for (pool, table) in self.pools.iter_mut().zip(tables) {
            for block in table {
                pool.users[block as usize] -= 1;
            }
        }
        Ok(())
    }

    fn register(&mut self, registration: Registration) -> Result<(), String> {
        let Seat { index, generation } = registration.seat;
        let Some(place) = self.seats.get_mut(index as usize) else {
            return Err(format!("seat {index} does not exist"));
        };
        if place.is_some() {
            return Err(format!("seat {index} is still registered"));
        }
        if generation <= self.last_generations[index as usize] {
            return Err(format!(
                "generation {generation} of seat {index} is not new"
            ));
        }
        if let Some(lane) = registration.penalty_lane
            && (lane >= self.num_lanes || !self.lanes.insert(lane))
        {
            return Err(format!("penalty lane {lane} cannot be taken"));
        }
        self.last_generations[index as usize] = generation;
        check_limits(&registration, self.max_positions, self.max_top_logprobs)?;
        check_ids(&registration, self.model.vocab_size())?;
        *place = Some(Occupant {
            tables: vec![Vec::new(); self.pools.len()],
            num_fed: 0,
            last_sampled: None,
            dead: false,
            registration,
        });
        Ok(())
    }

    fn append(&mut self, append: Append) -> Result<(), String> {
        let Append {
            seat,
            group,
            index,
            block,
        } = append;
        let users = self
            .pools
            .get_mut(group as usize)
            .and_then(|pool| pool.users.get_mut(block as usize))
            .ok_or_else(|| format!("group {group} has no block {block}"))?;
        if block == 0 {
            return Err("block 0 is scratch".to_owned());
        }
        *users += 1;
        let table = &mut self.occupant(seat)?.tables[group as usize];
        if table.len() != index as usize {
            return Err(format!("append {index} to a table of {}", table.len()));
        }
        table.push(block);
        Ok(())
    }

    /// The rows in full; remembers them if the next plan may repeat them.
    fn resolve(&mut self, rows: Rows) -> Result<Vec<Row>, String> {
        let rows = match rows {
            Rows::Listed(rows) => rows,
            Rows::SameAsPrevious(count) => {
                let same = self.repeatable.take().unwrap_or_default();
                if same.len() != count as usize || same.is_empty() {
                    return Err(format!("SAME_ROWS for {count} rows after {}", same.len()));
                }
                same
            }
        };
        let repeatable = rows.iter().all(|row| row.sample && row.feed.is_none());
        self.repeatable = repeatable.then(|| rows.clone());
        Ok(rows)
    }

    fn run_row(&mut self, row: Row, ids: &[u32], result: &mut StepResult) -> Result<(), String> {
        let index = row.seat as usize;
        let Some(mut occupant) = self.seats.get_mut(index).and_then(Option::take) else {
            result.rows.push(RowResult {
                seat: Seat {
                    index: row.seat,
                    generation: 0,
                },
                position: 0,
                status: RowStatus::Dead,
                num_tokens: 0,
            });
            return Ok(());
        };
        let outcome = self.compute(&mut occupant, row, ids)?;
        occupant.dead |= outcome.status != RowStatus::Ok;
        result.rows.push(RowResult {
            seat: occupant.registration.seat,
            position: occupant.num_fed,
            status: outcome.status,
            num_tokens: u32::from(outcome.sampled.is_some()),
        });
        // Only the token of the row just before can be continued.
        occupant.last_sampled = outcome.sampled.map(|(token, _)| token);
        if let Some((token, next)) = outcome.sampled {
            result.token_ids.push(token);
            self.add_logprobs(&occupant, token, next, result);
        }
        self.seats[index] = Some(occupant);
        Ok(())
    }

    /// An error if the row would write a block that another seat reads, too.
    fn compute(
        &mut self,
        occupant: &mut Occupant,
        row: Row,
        ids: &[u32],
    ) -> Result<Outcome, String> {
        let failed = |status| {
            Ok(Outcome {
                status,
                sampled: None,
            })
        };
        if occupant.dead {
            return failed(RowStatus::Dead);
        }
        let start = row
            .feed
            .map_or(occupant.num_fed, |Extent { start, .. }| start);
        let continued = occupant.last_sampled.map(|id| [id]);
        let inputs = match (&continued, row.feed) {
            (_, Some(_)) => ids,
            (Some(last), None) => last.as_slice(),
            (None, None) => return failed(RowStatus::BadInput),
        };
        let known = |&id: &u32| id < self.model.vocab_size();
        if occupant.num_fed == 0 && self.is_boundary(start) {
            // What lies before it came from the prefix cache.
            occupant.num_fed = start;
        }
        if start != occupant.num_fed || !inputs.iter().all(known) {
            return failed(RowStatus::BadInput);
        }
        let end = start as usize + inputs.len();
        let max_len = occupant.registration.max_len as usize;
        let granted = occupant.tables.iter().zip(&self.pools);
        let granted = granted.map(|(table, pool)| table.len() * pool.tokens_per_block);
        if granted.min().is_some_and(|granted| end > granted)
            || end + usize::from(row.sample) > max_len
        {
            return failed(RowStatus::Overrun);
        }
        for (&id, position) in inputs.iter().zip(start..) {
            let slot = self.model.store(id, position);
            for (pool, table) in self.pools.iter_mut().zip(&occupant.tables) {
                let block = table[position as usize / pool.tokens_per_block];
                if pool.users[block as usize] > 1 {
                    return Err(format!(
                        "position {position} is written to shared block {block}"
                    ));
                }
                *pool.slot(table, position as usize) = slot;
            }
        }
        occupant.num_fed += u32::try_from(inputs.len()).expect("a chunk is short of 2^32 tokens");
        let slots: Vec<Slot> = (0..end)
            .map(|position| self.read(occupant, position))
            .collect();
        match self.model.next_token(slots.into_iter()) {
            // As in a real shard: only rows that sample have logits to look at.
            _ if !row.sample => failed(RowStatus::Ok),
            None => failed(RowStatus::Nan),
            Some(next) => Ok(Outcome {
                status: RowStatus::Ok,
                sampled: Some((self.choose(occupant, next), next)),
            }),
        }
    }

    /// Blocks of all groups begin here.
    fn is_boundary(&self, position: u32) -> bool {
        let mut pools = self.pools.iter();
        pools.all(|pool| (position as usize).is_multiple_of(pool.tokens_per_block))
    }

    /// What all groups hold at a position; groups that differ have been written to by somebody else.
    fn read(&mut self, occupant: &Occupant, position: usize) -> Slot {
        let mut values = self
            .pools
            .iter_mut()
            .zip(&occupant.tables)
            .map(|(pool, table)| *pool.slot(table, position));
        let first = values.next()?;
        values.all(|value| value == first).then_some(first)?
    }

    /// The highest logit after bias and bans; of equal ones the lowest id. Penalties and warpers are left out: the
    /// model's logits are too far apart for them to matter.
    fn choose(&self, occupant: &Occupant, next: u32) -> u32 {
        let Registration {
            sampling,
            banned_ids,
            min_length_ids,
            ..
        } = &occupant.registration;
        let num_generated = occupant.num_fed - occupant.registration.prompt_len;
        let too_short = num_generated < sampling.min_new_tokens;
        let banned =
            |id: u32| banned_ids.contains(&id) || (too_short && min_length_ids.contains(&id));
        let bias = |id: u32| {
            let found = sampling.logit_bias.iter().find(|(biased, _)| *biased == id);
            found.map(|&(_, bias)| f64::from(bias))
        };
        let score = |id: u32| bias(id).unwrap_or(0.0) - f64::from(self.model.distance(next, id));
        let unbiased = (0..self.model.vocab_size())
            .map(|distance| (next + distance) % self.model.vocab_size())
            .find(|&id| !banned(id) && bias(id).is_none());
        let biased = sampling.logit_bias.iter().map(|&(id, _)| id);
        biased
            .filter(|&id| !banned(id) && id < self.model.vocab_size())
            .chain(unbiased)
            .max_by(|&a, &b| score(a).total_cmp(&score(b)).then(b.cmp(&a)))
            .unwrap_or(next)
    }

    fn add_logprobs(&self, occupant: &Occupant, token: u32, next: u32, result: &mut StepResult) {
        let Some(params) = occupant.registration.logprobs else {
            return;
        };
        result.logprobs.push(self.model.logprob(next, token));
        for distance in 0..params.num_top {
            let id = (next + distance) % self.model.vocab_size();
            result.top_ids.push(id);
            result.top_logprobs.push(self.model.logprob(next, id));
        }
    }
}

fn check_limits(
    registration: &Registration,
    max_positions: u32,
    max_top_logprobs: u32,
) -> Result<(), String> {
    let max_len = registration.max_len;
    if max_len > max_positions {
        return Err(format!("max_len {max_len} of {max_positions} positions"));
    }
    let num_top = registration.logprobs.map_or(0, |params| params.num_top);
    if num_top > max_top_logprobs {
        return Err(format!("{num_top} top logprobs of {max_top_logprobs}"));
    }
    Ok(())
}

fn check_ids(registration: &Registration, vocab_size: u32) -> Result<(), String> {
    let Registration {
        sampling,
        banned_ids,
        min_length_ids,
        history_ids,
        ..
    } = registration;
    let bias_ids: Vec<u32> = sampling.logit_bias.iter().map(|&(id, _)| id).collect();
    let lists = [
        ("bias", &bias_ids),
        ("banned", banned_ids),
        ("min-length", min_length_ids),
        ("history", history_ids),
    ];
    for (what, ids) in lists {
        if let Some(id) = ids.iter().find(|&&id| id >= vocab_size) {
            return Err(format!("{what} id {id} of a vocabulary of {vocab_size}"));
        }
    }
    let distinct: HashSet<u32> = bias_ids.iter().copied().collect();
    if distinct.len() < bias_ids.len() {
        return Err("an id has two biases".to_owned());
    }
    Ok(())
}
