//! From the scheduler's state and its limits to the next plan: rows that decode, then the next chunks of running
//! prompts, then new requests while tokens, rows, seats, lanes and blocks last.

use std::time::Duration;

use super::sequence::Phase;
use super::step::{Append, Extent, Plan, Registration, Row, Rows};
use super::tempo::Chunk;
use super::{InFlight, PlannedRow, Scheduler};
use crate::event::Delivery;

/// A plan in the making.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) registrations: Vec<Registration>,
    /// In the lists of the registrations.
    pub(super) list_entries: usize,
    pub(super) appends: Vec<Append>,
    rows: Vec<Row>,
    feed_ids: Vec<u32>,
    planned: Vec<PlannedRow>,
    /// Seats whose row feeds.
    fed: Vec<u32>,
    /// The plan before left requests waiting.
    pub(super) others_waited: bool,
    /// Requests that have a row, or may have one in the plans to come.
    pub(super) num_active: u32,
    /// Prompts of several plans that are being computed.
    pub(super) num_long: usize,
    /// Seats whose requests will have written more of their prompt.
    pub(super) writers: Vec<u32>,
    /// Per KV group: blocks that those who run are expected to take still.
    pub(super) promised: Vec<usize>,
    /// Per KV group: blocks that only those with a reservation may take.
    pub(super) set_aside: Vec<usize>,
}

/// Prompt tokens of a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) all: u32,
    /// Of these, what prompts that take several plans leave to the others, who are served first.
    pub(super) short: u32,
}

impl Draft {
    pub(super) fn num_rows(&self) -> u32 {
        u32::try_from(self.rows.len()).expect("rows are bounded by the seats")
    }

    pub(super) fn num_fed(&self) -> u32 {
        u32::try_from(self.feed_ids.len()).expect("prompt tokens are bounded by the budget")
    }

    pub(super) fn append(&mut self, seat: u32, group: u32, index: u32, block: u32) {
        self.appends.push(Append {
            seat,
            group,
            index,
            block,
        });
    }
}

impl Scheduler {
    /// The next plan, `None` if there is nothing to order or as many plans as allowed are in flight. Requests whose time
    /// is over end before it is made.
    pub fn plan(&mut self, now: Duration, out: &mut Vec<Delivery>) -> Option<Plan> {
        self.expire(now, out);
        if !self.may_send() {
            return None;
        }
        self.make_room(out);
        let mut draft = self.draft();
        self.plan_decode_rows(&mut draft);
        let budget = self.prompt_budget(&draft);
        self.plan_running_prompts(&mut draft, budget.short, false);
        self.admit(&mut draft, &budget, now);
        self.plan_running_prompts(&mut draft, budget.all, true);
        // Seats come back only when the shard has been told that they are free.
        let unblocks_queue = !self.queue.is_empty() && self.seats.has_leaving();
        if draft.rows.is_empty() && draft.registrations.is_empty() && !unblocks_queue {
            return None;
        }
        Some(self.seal(draft))
    }

    fn draft(&self) -> Draft {
        let has_reservations = self.running.iter().any(|sequence| sequence.reserved);
        let groups = 0..if has_reservations {
            self.limits.groups.len()
        } else {
            0
        };
        Draft {
            set_aside: groups.map(|group| self.set_aside(group)).collect(),
            ..Draft::default()
        }
    }

    fn plan_decode_rows(&mut self, draft: &mut Draft) {
        let mut order = self.running.order().to_vec();
        if self.short_of_blocks {
            // Whoever is to get on in any case takes blocks first.
            order.sort_by_key(|&seat| {
                let sequence = self.running.at(seat);
                (!sequence.reserved, sequence.class, sequence.task.arrival)
            });
        }
        for seat in order {
            if draft.num_rows() < self.limits.max_rows
                && self.running.at(seat).phase() == Phase::Decode
                && self.take_blocks(draft, seat, 1) > 0
            {
                self.add_row(draft, seat, 0);
            }
        }
    }

    /// Prompt tokens for this plan, beside the decode rows.
    fn prompt_budget(&self, draft: &Draft) -> Budget {
        let decode_rows = draft.num_rows();
        if decode_rows > 0 && self.tempo.must_measure() {
            return Budget { all: 0, short: 0 };
        }
        let mut most = self
            .limits
            .max_prompt_tokens
            .min(self.limits.max_tokens() - decode_rows);
        if decode_rows > 0 {
            let deepest = self.prefilling().map(|seat| self.running.at(seat).num_fed);
            let target = self.policy.target_itl;
            let within = self.tempo.prompt_tokens_within(target, deepest.max());
            if within < most {
                most = round_to_size(&self.limits.mixed_sizes, decode_rows, within).min(most);
            }
        }
        let mut wanted = 0u32;
        let mut has_long = false;
        for seat in self.prefilling() {
            let sequence = self.running.at(seat);
            let remaining = sequence.feed_end - sequence.num_fed;
            wanted = wanted.saturating_add(remaining).min(most);
            has_long |= sequence.is_long;
        }
        for waiting in self.queue.iter() {
            if wanted == most {
                break;
            }
            let count = u32::try_from(waiting.num_known()).unwrap_or(u32::MAX);
            wanted = wanted.saturating_add(count).min(most);
        }
        let all = fill_size(&self.limits.mixed_sizes, decode_rows, wanted);
        // The halves of an odd number go to either side in turn.
        let half = (all + (self.last_plan_id % 2) as u32) / 2;
        Budget {
            all,
            short: if has_long { half } else { all },
        }
    }

    fn plan_running_prompts(&mut self, draft: &mut Draft, prompt_tokens: u32, long: bool) {
        for position in 0..self.running.len() {
            let seat = self.running.order()[position];
            let sequence = self.running.at(seat);
            let Phase::Prefill { remaining } = sequence.phase() else {
                continue;
            };
            if sequence.is_long != long || draft.fed.contains(&seat) {
                continue;
            }
            let count = remaining.min(prompt_tokens.saturating_sub(draft.num_fed()));
            if count == 0 || draft.num_rows() == self.limits.max_rows {
                return;
            }
            self.feed_row(draft, seat, count);
        }
    }

    /// Adds a row that feeds the next `count` known tokens, or as many of them as there are blocks for.
    pub(super) fn feed_row(&mut self, draft: &mut Draft, seat: u32, count: u32) {
        let count = self.take_blocks(draft, seat, count);
        if count > 0 {
            self.add_row(draft, seat, count);
            draft.fed.push(seat);
        }
    }

    /// Adds a row that feeds the next `count` known tokens, or continues if `count` is 0.
    fn add_row(&mut self, draft: &mut Draft, seat: u32, count: u32) {
        let plan_id = self.last_plan_id + 1;
        let sequence = self.running.at_mut(seat);
        let start = sequence.num_fed;
        sequence.num_fed += count.max(1);
        sequence.last_plan = plan_id;
        let sample = sequence.num_fed >= sequence.feed_end;
        sequence.num_planned += u32::from(sample);
        let feed = (count > 0).then_some(Extent { start, count });
        if let Some(Extent { start, count }) = feed {
            let ids = sequence.task.ids(start as usize, (start + count) as usize);
            draft.feed_ids.extend(ids);
        }
        draft.rows.push(Row { seat, sample, feed });
        draft.planned.push(PlannedRow {
            seat: sequence.occupancy.seat,
            position: sequence.num_fed,
            sample,
            logprobs: sequence.task.request.logprobs,
        });
    }

    /// Numbers the plan and remembers what its results must look like.
    fn seal(&mut self, draft: Draft) -> Plan {
        let Draft {
            registrations,
            appends,
            rows,
            feed_ids,
            planned,
            fed,
            ..
        } = draft;
        self.last_plan_id += 1;
        let id = self.last_plan_id;
        let feeds = !feed_ids.is_empty();
        self.count(&registrations, &rows, &feed_ids);
        let decode_rows = rows.len() - fed.len();
        let total = u32::try_from(decode_rows + feed_ids.len()).unwrap_or(u32::MAX);
        let decode_rows = u32::try_from(decode_rows).unwrap_or(u32::MAX);
        if decode_rows > 0 {
            self.tempo.planned(feeds);
        }
        self.in_flight.push_back(InFlight {
            plan_id: id,
            rows: planned,
            decode_rows,
            chunk: Chunk {
                tokens: match feeds {
                    true => padded(&self.limits.mixed_sizes, total) - decode_rows,
                    false => 0,
                },
                context: feed_context(&rows),
            },
        });
        // The plan is as good as sent: from the next one on, what it feeds is there to be shared.
        for seat in fed {
            self.publish(seat);
        }
        Plan {
            id,
            frees: self.seats.send_frees(id),
            registrations,
            appends,
            rows: self.abbreviate(rows, feeds),
            feed_ids,
        }
    }

    fn count(&mut self, registrations: &[Registration], rows: &[Row], feed_ids: &[u32]) {
        self.counters.rows += rows.len() as u64;
        let joins = !registrations.is_empty() && self.running.len() > registrations.len();
        self.counters.joins += u64::from(joins);
        self.counters.prompt_tokens += feed_ids.len() as u64;
        if !feed_ids.is_empty() {
            self.counters.prefill_steps += 1;
        } else if !rows.is_empty() {
            self.counters.decode_steps += 1;
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

/// Over all tokens that rows feed, the tokens before.
fn feed_context(rows: &[Row]) -> u64 {
    let feeds = rows.iter().filter_map(|row| row.feed);
    let contexts = feeds.map(|Extent { start, count }| {
        let (start, count) = (u64::from(start), u64::from(count));
        count * start + count * count / 2
    });
    contexts.sum()
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
    // One step more costs more than a little padding.
    if smaller <= decode_rows || larger - total <= total / 8 {
        return wanted;
    }
    let rest = total - smaller + decode_rows;
    if smaller + padded(sizes, rest) < larger {
        smaller - decode_rows
    } else {
        wanted
    }
}

/// The most prompt tokens beside the decode rows that are not padded to more than `wanted`; all that the smallest size
/// holds if even that is more.
fn round_to_size(sizes: &[u32], decode_rows: u32, wanted: u32) -> u32 {
    let within = sizes.partition_point(|&size| size <= decode_rows + wanted);
    let largest = sizes[..within].last().copied().unwrap_or(0);
    if largest > decode_rows {
        return largest - decode_rows;
    }
    padded(sizes, decode_rows + 1) - decode_rows
}

/// The size that holds this many tokens.
fn padded(sizes: &[u32], tokens: u32) -> u32 {
    let size = sizes.iter().copied().find(|&size| size >= tokens);
    size.unwrap_or(tokens)
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
