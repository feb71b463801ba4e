//! From the queue to a seat: who may start with this plan, and why the others may not.

use std::time::Duration;

#[cfg(test)]
use super::bugs::{self, Bug};
use super::limits::{Reserve, positions_written};
use super::plan::{Budget, Draft};
use super::radix::{Match, common_prefix};
use super::seats::Occupancy;
use super::sequence::{Sequence, list_entries};
use super::step::Seat;
use super::{Phase, Scheduler};
use crate::event::WaitReason;
use crate::request::RequestId;

/// Most list entries (ids, biases) that the registrations of one plan hold together, unless it is a single one. A plan
/// is one message, and an entry takes at most two words.
const MAX_LIST_ENTRIES: usize = 4 << 20;
/// Requests that a plan looks at and leaves waiting: all, and those of them that do not fit.
const MAX_TRIED: usize = 64;
const MAX_MISFITS: usize = 16;
/// Times that others may be admitted before a request that does not fit.
pub(super) const MAX_PASSED: u32 = 16;
/// Running requests whose prefix others may wait for.
const MAX_WRITERS: usize = 64;
/// Prompts of more than a plan's worth of tokens that are computed at once.
const MAX_LONG: usize = 2;

/// What a waiting request gets if it is admitted.
#[derive(Clone, Copy)]
struct Offer {
    hit: Option<Match>,
    /// Positions that it is expected to write.
    expected: usize,
    reserved: bool,
    is_long: bool,
}

impl Scheduler {
    /// Admits waiting requests in order. Those that do not fit are passed, but not too often.
    pub(super) fn admit(&mut self, draft: &mut Draft, budget: &Budget, now: Duration) {
        draft.others_waited = std::mem::replace(&mut self.left_behind, !self.queue.is_empty());
        self.left_unseen = false;
        if !self.left_behind {
            return;
        }
        self.survey(draft);
        if draft.num_long < MAX_LONG {
            self.queue.unpark();
        }
        self.left_unseen = !self.admit_all(draft, budget, now);
        self.left_behind = !self.queue.is_empty();
    }

    /// True if every request that still waits was looked at.
    fn admit_all(&mut self, draft: &mut Draft, budget: &Budget, now: Duration) -> bool {
        let mut tried: Vec<RequestId> = Vec::new();
        let mut misfits: Vec<RequestId> = Vec::new();
        let mut num_parked = 0;
        while let Some(id) = self.queue.next(now, &tried) {
            match self.try_admit(draft, budget, id, now) {
                Ok(()) => {
                    let mut most = 0;
                    for &misfit in &misfits {
                        if let Some(task) = self.queue.get_mut(misfit) {
                            task.passed += 1;
                            most = most.max(task.passed);
                        }
                    }
                    if most >= MAX_PASSED {
                        return false;
                    }
                }
                Err(reason) => {
                    let task = self.queue.get_mut(id).expect("it was not admitted");
                    task.waited = Some(reason);
                    let is_misfit = reason == WaitReason::Blocks;
                    let blocks_others = is_misfit && task.passed >= MAX_PASSED;
                    if is_misfit {
                        misfits.push(id);
                    }
                    if reason == WaitReason::LongPrompts {
                        self.queue.park(id);
                        num_parked += 1;
                    } else {
                        tried.push(id);
                    }
                    let full = reason == WaitReason::StepFull
                        || !self.seats.has_free()
                        || self.short_of_blocks;
                    let enough =
                        tried.len() + num_parked == MAX_TRIED || misfits.len() == MAX_MISFITS;
                    if full || blocks_others || enough {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Looks once at all that run, for what every waiting request needs to know of them.
    fn survey(&self, draft: &mut Draft) {
        let unit = self.cache.tokens_per_unit();
        let running = || self.running.iter().filter(|sequence| !sequence.stopped);
        let active = running().filter(|sequence| sequence.phase() != Phase::Drained);
        draft.num_active = draft.num_rows().max(number(active.count()));
        let computed = running().filter(|sequence| sequence.num_fed < sequence.feed_end);
        draft.num_long = computed.filter(|sequence| sequence.is_long).count();
        // Also those that this plan brings to the end of their prompt: it can be shared from the next plan on.
        let writes =
            |sequence: &&Sequence| sequence.hold.cached_units() < sequence.feed_end as usize / unit;
        let writers = running().filter(writes);
        let seats = writers.map(|sequence| sequence.occupancy.seat.index);
        draft.writers = seats.take(MAX_WRITERS).collect();
        let groups = 0..self.limits.groups.len();
        draft.promised = groups.map(|group| self.promised(group)).collect();
    }

    /// Adds what was admitted just now.
    fn survey_one(&self, draft: &mut Draft, seat: u32) {
        let sequence = self.running.at(seat);
        draft.num_active += 1;
        draft.num_long += usize::from(sequence.is_long && sequence.num_fed < sequence.feed_end);
        if draft.writers.len() < MAX_WRITERS {
            draft.writers.push(seat);
        }
        for (group, promised) in draft.promised.iter_mut().enumerate() {
            *promised += self.promise(sequence, group);
        }
    }

    fn try_admit(
        &mut self,
        draft: &mut Draft,
        budget: &Budget,
        id: RequestId,
        now: Duration,
    ) -> Result<(), WaitReason> {
        if draft.num_active >= self.limits.max_rows || draft.num_fed() >= budget.all {
            return Err(WaitReason::StepFull);
        }
        if !self.seats.has_free() {
            return Err(WaitReason::Seats);
        }
        if self.short_of_blocks && self.running.len() > 0 {
            return Err(WaitReason::Blocks);
        }
        let task = self.queue.get(id).expect("the queue has just named it");
        let wants_lane = task.request.sampling.needs_penalty_lane();
        // Those who pass it take no lane, so it is no misfit that others must wait for.
        if wants_lane && !self.seats.has_free_lane() {
            return Err(WaitReason::Seats);
        }
        let entries = list_entries(&task.request, task.num_known());
        let fits = draft.list_entries + entries <= MAX_LIST_ENTRIES;
        if !fits && !draft.registrations.is_empty() {
            return Err(WaitReason::StepFull);
        }
        let offer = self.offer(draft, budget, id)?;
        let occupancy = self.seats.take(wants_lane).ok_or(WaitReason::Seats)?;
        draft.list_entries += entries;
        self.seat(draft, id, occupancy, offer, now);
        let seat = occupancy.seat.index;
        let sequence = self.running.at(seat);
        let allowed = if sequence.is_long {
            budget.all
        } else {
            budget.short
        };
        let count = (sequence.feed_end - sequence.num_fed).min(allowed - draft.num_fed());
        self.feed_row(draft, seat, count);
        self.survey_one(draft, seat);
        Ok(())
    }

    /// What the request can have now.
    fn offer(
        &mut self,
        draft: &Draft,
        budget: &Budget,
        id: RequestId,
    ) -> Result<Offer, WaitReason> {
        let task = self.queue.get(id).expect("the queue has just named it");
        let mut buffer = Vec::new();
        let known = task.known(&mut buffer);
        let scheduling = task.request.scheduling;
        let hit = self.cache.find(scheduling.cache_salt, known);
        let num_known = known.len();
        let unit = self.cache.tokens_per_unit();
        let cached = hit.map_or(0, |hit| hit.num_units) * unit;
        let writer = self.writer_of(draft, scheduling.cache_salt, known, cached);
        if let Some((seat, shared)) = writer
            && self.may_wait_for(id, seat, shared, budget)
        {
            let writer = self.running.at_mut(seat);
            writer.class = writer.class.min(scheduling.class);
            return Err(WaitReason::SharedPrefix);
        }
        let task = self.queue.get(id).expect("it still waits");
        let is_long = num_known - cached > self.limits.max_prompt_tokens as usize;
        if is_long && draft.num_long >= MAX_LONG {
            return Err(WaitReason::LongPrompts);
        }
        if !is_long && draft.num_fed() >= budget.short {
            return Err(WaitReason::StepFull);
        }
        let most = positions_written(task.request.max_len());
        let reserved = self.policy.reserve == Reserve::Full || task.preemptions >= 2;
        let max_new = task.request.max_new_tokens;
        let generated = u32::try_from(task.generated.len()).unwrap_or(max_new);
        let expected_new = self.outputs.expect(max_new, generated) as usize;
        let expected = match reserved {
            true => most,
            false => {
                (task.request.prompt_ids.len() + expected_new).clamp(num_known, most.max(num_known))
            }
        };
        let offer = Offer {
            hit,
            expected,
            reserved,
            is_long,
        };
        if self.has_blocks_for(draft, &offer) {
            Ok(offer)
        } else {
            Err(WaitReason::Blocks)
        }
    }

    /// Room for all that the request is expected to write, beside what is promised to others.
    fn has_blocks_for(&self, draft: &Draft, offer: &Offer) -> bool {
        let alone = self.running.len() == 0;
        #[cfg(test)]
        if bugs::is(Bug::ReservesTooMuch) && offer.reserved {
            return true;
        }
        self.cache.pools().iter().enumerate().all(|(group, pool)| {
            let cost = self.cache.cost(group, offer.expected, offer.hit);
            let watermark = match alone || offer.reserved {
                true => 0,
                // So that a few long answers do not stop anybody.
                false => pool.total() / 100 + self.running.len(),
            };
            cost + draft.promised[group] + watermark <= self.cache.num_available(group)
        })
    }

    /// A running request that will soon have written the unit that this one needs next, and how many tokens it is going to
    /// write that both have.
    fn writer_of(
        &self,
        draft: &Draft,
        salt: u64,
        known: &[u32],
        cached: usize,
    ) -> Option<(u32, usize)> {
        if !self.policy.prefix_cache {
            return None;
        }
        let unit = self.cache.tokens_per_unit();
        let most = (known.len() - 1) / unit * unit;
        let next = known.get(cached..cached + unit)?;
        let mut buffer = Vec::new();
        for &seat in &draft.writers {
            let sequence = self.running.at(seat);
            let to_write = sequence.feed_end as usize / unit * unit;
            let published = sequence.hold.cached_units() * unit;
            let done = published > cached || to_write <= cached;
            if done || sequence.task.request.scheduling.cache_salt != salt {
                continue;
            }
            // Most share what is cached and no more, and that may be long.
            let theirs = sequence.task.ids(cached, cached + unit);
            if !theirs.eq(next.iter().copied()) {
                continue;
            }
            let theirs = sequence.task.known(&mut buffer);
            let same = common_prefix(theirs, known);
            let shared = same.min(most).min(to_write) / unit * unit;
            if shared > cached {
                return Some((seat, shared - cached));
            }
        }
        None
    }

    /// Whether waiting for what `seat` writes still costs less than computing it, which takes plans of `shared` tokens.
    fn may_wait_for(&mut self, id: RequestId, seat: u32, shared: usize, budget: &Budget) -> bool {
        let writer = self.running.at(seat).id();
        let plans_in_flight = u64::from(self.limits.depth) + 1;
        let per_plan = u64::from(budget.all);
        let task = self.queue.get_mut(id).expect("it still waits");
        let left = match task.patience {
            Some((other, left)) if other == writer => left,
            _ => shared as u64 + per_plan * plans_in_flight,
        };
        task.patience = Some((writer, left.saturating_sub(per_plan)));
        left > 0
    }

    /// Moves the request from the queue to its seat.
    fn seat(
        &mut self,
        draft: &mut Draft,
        id: RequestId,
        occupancy: Occupancy,
        offer: Offer,
        now: Duration,
    ) {
        let mut task = self.queue.remove(id).expect("it still waits");
        let Seat { index: seat, .. } = occupancy.seat;
        let scheduling = task.request.scheduling;
        let hold = self
            .cache
            .open(scheduling.cache_salt, offer.hit, |group, index, block| {
                draft.append(seat, group, index, block);
            });
        let cached = hold.cached_units() * self.cache.tokens_per_unit();
        let num_known = task.num_known();
        self.counters.cached_tokens += cached as u64;
        // What is computed once more because others needed room is no service to its tenant.
        if task.started.is_none() {
            let num_computed = num_known.saturating_sub(cached);
            self.queue.admitted(scheduling.tenant, num_computed);
            task.started = Some(now);
            task.cached_tokens = number(cached.min(num_known));
            task.waited = task.wait_reason(self.last_plan_id);
            self.counters.waited(task.waited);
            self.tempo.admitted(now, draft.others_waited);
        }
        let num_sampled = number(task.generated.len());
        #[cfg(test)]
        let num_sampled = num_sampled * if bugs::is(Bug::CountsTwice) { 2 } else { 1 };
        self.running_max_tokens += task.request.max_len() as u64;
        let cached = number(cached);
        self.running.insert(Sequence {
            class: scheduling.class,
            task,
            occupancy,
            hold,
            feed_end: number(num_known),
            num_fed: cached,
            num_hit: cached,
            num_written: cached,
            num_planned: num_sampled,
            num_sampled,
            last_plan: 0,
            expected: offer.expected,
            reserved: offer.reserved,
            is_long: offer.is_long,
            stopped: false,
        });
        draft
            .registrations
            .push(self.running.at(seat).registration());
        if offer.reserved {
            let groups = 0..self.limits.groups.len();
            draft.set_aside = groups.map(|group| self.set_aside(group)).collect();
        }
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("limits keep requests short of 2^32")
}
