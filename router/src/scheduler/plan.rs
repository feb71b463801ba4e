//! From the scheduler's state and its limits to the next plan: rows that decode, then the next chunks of running
//! prompts, then new requests while tokens, rows, seats, lanes and blocks last.

use std::time::Duration;

use super::limits::positions_written;
use super::sequence::{Phase, Sequence, list_entries};
use super::step::{Append, Extent, Plan, Registration, Row, Rows};
use super::{InFlight, PlannedRow, Scheduler};

/// Most list entries (ids, biases) that the registrations of one plan hold together, unless it is a single one. A plan
/// is one message, and an entry takes at most two words.
const MAX_LIST_ENTRIES: usize = 4 << 20;

/// A plan in the making.
#[derive(Default)]
struct Draft {
    registrations: Vec<Registration>,
    /// In the lists of the registrations.
    list_entries: usize,
    appends: Vec<Append>,
    rows: Vec<Row>,
    feed_ids: Vec<u32>,
    planned: Vec<PlannedRow>,
}

impl Draft {
    fn num_rows(&self) -> u32 {
        u32::try_from(self.rows.len()).expect("rows are bounded by the seats")
    }

    fn num_fed(&self) -> u32 {
        u32::try_from(self.feed_ids.len()).expect("prompt tokens are bounded by the budget")
    }
}

impl Scheduler {
    /// The next plan, `None` if there is nothing to order or as many plans as allowed are in flight.
    pub fn plan(&mut self, now: Duration) -> Option<Plan> {
        if !self.may_send() {
            return None;
        }
        let mut draft = Draft::default();
        self.plan_decode_rows(&mut draft);
        let prompt_tokens = self.prompt_budget(draft.num_rows());
        self.plan_running_prompts(&mut draft, prompt_tokens);
        self.admit(&mut draft, prompt_tokens, now);
        // Seats come back only when the shard has been told that they are free.
        let unblocks_queue = !self.queue.is_empty() && self.seats.has_leaving();
        if draft.rows.is_empty() && !unblocks_queue {
            return None;
        }
        Some(self.seal(draft))
    }

    fn plan_decode_rows(&mut self, draft: &mut Draft) {
        for position in 0..self.running.len() {
            let seat = self.running.order()[position];
            if draft.num_rows() < self.limits.max_rows
                && self.running.at(seat).phase() == Phase::Decode
            {
                self.add_row(draft, seat, 0);
            }
        }
    }

    /// Prompt tokens for this plan, beside `decode_rows` other tokens.
    fn prompt_budget(&self, decode_rows: u32) -> u32 {
        let most = self
            .limits
            .max_prompt_tokens
            .min(self.limits.max_tokens() - decode_rows);
        let mut wanted = 0u32;
        for sequence in self.running.iter() {
            if let Phase::Prefill { remaining } = sequence.phase() {
                wanted = wanted.saturating_add(remaining).min(most);
            }
        }
        for waiting in self.queue.iter() {
            if wanted == most {
                break;
            }
            let prompt_len = u32::try_from(waiting.request.prompt_ids.len()).unwrap_or(u32::MAX);
            wanted = wanted.saturating_add(prompt_len).min(most);
        }
        fill_size(&self.limits.mixed_sizes, decode_rows, wanted)
    }

    fn plan_running_prompts(&mut self, draft: &mut Draft, prompt_tokens: u32) {
        for position in 0..self.running.len() {
            let seat = self.running.order()[position];
            let Phase::Prefill { remaining } = self.running.at(seat).phase() else {
                continue;
            };
            let count = remaining.min(prompt_tokens - draft.num_fed());
            if count == 0 || draft.num_rows() == self.limits.max_rows {
                return;
            }
            self.add_row(draft, seat, count);
        }
    }

    /// Takes waiting requests in order until one does not fit.
    fn admit(&mut self, draft: &mut Draft, prompt_tokens: u32, now: Duration) {
        let mut active = self
            .running
            .iter()
            .filter(|sequence| sequence.phase() != Phase::Drained)
            .count()
            .max(draft.rows.len());
        while draft.num_fed() < prompt_tokens && active < self.limits.max_rows as usize {
            let Some(entries) = self.queue.front().map(|next| list_entries(&next.request)) else {
                return;
            };
            let fits = draft.list_entries + entries <= MAX_LIST_ENTRIES;
            if !fits && !draft.registrations.is_empty() {
                return;
            }
            let Some(seat) = self.admit_front(now) else {
                return;
            };
            active += 1;
            draft.list_entries += entries;
            let sequence = self.running.at(seat);
            draft.registrations.push(sequence.registration());
            let count = sequence.prompt_len().min(prompt_tokens - draft.num_fed());
            self.add_row(draft, seat, count);
        }
    }

    /// Gives the first waiting request a seat and its reservation, if it can have both.
    fn admit_front(&mut self, now: Duration) -> Option<u32> {
        let request = &self.queue.front()?.request;
        let wants_lane = request.sampling.needs_penalty_lane();
        let tokens = positions_written(request.max_len());
        let occupancy = self.seats.take(wants_lane)?;
        let Some(leases) = self.reserve_all(tokens) else {
            self.seats.put_back(occupancy);
            return None;
        };
        let waiting = self.queue.pop().expect("the front was just seen");
        self.running_max_tokens += waiting.request.max_len() as u64;
        self.running.insert(Sequence {
            request: waiting.request,
            occupancy,
            leases,
            num_fed: 0,
            num_planned: 0,
            num_sampled: 0,
            last_plan: 0,
            submitted: waiting.submitted,
            started: now,
        });
        Some(occupancy.seat.index)
    }

    /// Adds a row that feeds the next `count` prompt tokens, or continues if `count` is 0.
    fn add_row(&mut self, draft: &mut Draft, seat: u32, count: u32) {
        let plan_id = self.last_plan_id + 1;
        let sequence = self.running.at_mut(seat);
        let start = sequence.num_fed;
        sequence.num_fed += count.max(1);
        sequence.last_plan = plan_id;
        let sample = sequence.num_fed >= sequence.prompt_len();
        sequence.num_planned += u32::from(sample);
        let feed = (count > 0).then_some(Extent { start, count });
        if let Some(Extent { start, count }) = feed {
            let chunk = start as usize..(start + count) as usize;
            draft
                .feed_ids
                .extend_from_slice(&sequence.request.prompt_ids[chunk]);
        }
        for ((pool, lease), group) in self.pools.iter_mut().zip(&mut sequence.leases).zip(0..) {
            pool.grow(lease, sequence.num_fed as usize, |index, block| {
                draft.appends.push(Append {
                    seat,
                    group,
                    index,
                    block,
                });
            });
        }
        draft.rows.push(Row { seat, sample, feed });
        draft.planned.push(PlannedRow {
            seat: sequence.occupancy.seat,
            position: sequence.num_fed,
            sample,
            logprobs: sequence.request.logprobs,
        });
    }

    /// Numbers the plan and remembers what its results must look like.
    fn seal(&mut self, draft: Draft) -> Plan {
        let Draft {
            registrations,
            list_entries: _,
            appends,
            rows,
            feed_ids,
            planned,
        } = draft;
        self.last_plan_id += 1;
        let id = self.last_plan_id;
        let feeds = !feed_ids.is_empty();
        self.counters.rows += rows.len() as u64;
        let joins = !registrations.is_empty() && self.running.len() > registrations.len();
        self.counters.joins += u64::from(joins);
        self.counters.prompt_tokens += feed_ids.len() as u64;
        if feeds {
            self.counters.prefill_steps += 1;
        } else if !rows.is_empty() {
            self.counters.decode_steps += 1;
        }
        self.in_flight.push_back(InFlight {
            plan_id: id,
            rows: planned,
        });
        Plan {
            id,
            frees: self.seats.send_frees(id),
            registrations,
            appends,
            rows: self.abbreviate(rows, feeds),
            feed_ids,
        }
    }

    /// Replaces rows that equal the previous plan's by a mark.
    fn abbreviate(&mut self, rows: Vec<Row>, feeds: bool) -> Rows {
        let repeatable = !feeds && !rows.is_empty();
        if repeatable && rows == self.repeatable_rows {
            let count = u32::try_from(rows.len()).expect("rows are bounded by the seats");
            return Rows::SameAsPrevious(count);
        }
        self.repeatable_rows.clear();
        if repeatable {
            self.repeatable_rows.extend_from_slice(&rows);
        }
        Rows::Listed(rows)
    }
}

/// Prompt tokens to plan when `wanted` are at hand: either all, or as many as fill the next smaller size beside the
/// decode rows, if running the rest in a step of its own costs fewer padded tokens than padding all to the larger size.
fn fill_size(sizes: &[u32], decode_rows: u32, wanted: u32) -> u32 {
    let total = decode_rows + wanted;
    let at_least = sizes.partition_point(|&size| size < total);
    let (Some(&larger), Some(&smaller)) = (
        sizes.get(at_least),
        at_least.checked_sub(1).and_then(|below| sizes.get(below)),
    ) else {
        return wanted;
    };
    if smaller <= decode_rows {
        return wanted;
    }
    let rest = total - smaller + decode_rows;
    let rest_padded = sizes
        .iter()
        .copied()
        .find(|&size| size >= rest)
        .unwrap_or(rest);
    if smaller + rest_padded < larger {
        smaller - decode_rows
    } else {
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::fill_size;

    #[test]
    fn chunks_fill_a_size_where_that_saves_padding() {
        let sizes = [64, 128, 256, 512];
        // (decode rows, wanted prompt tokens, planned prompt tokens)
        let cases = [
            (0, 10, 10),    // below the smallest size
            (0, 64, 64),    // exact
            (0, 100, 100),  // 64 + 64 saves nothing over 128
            (0, 130, 128),  // 128 + 64 < 256
            (0, 300, 256),  // 256 + 64 < 512
            (0, 390, 390),  // 256 + 256 saves nothing over 512
            (30, 260, 226), // 256 beside the decode rows, then 64
            (64, 10, 10),   // the smaller size is full of decode rows
            (0, 512, 512),
            (512, 0, 0),
        ];
        for (decode_rows, wanted, planned) in cases {
            assert_eq!(
                fill_size(&sizes, decode_rows, wanted),
                planned,
                "{decode_rows} decode rows, {wanted} wanted"
            );
        }
    }
}
