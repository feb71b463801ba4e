//! Blocks for those who run. They come on demand, so there may be too few: then somebody is stopped, early enough that
//! the others need not wait. Requests that hold a reservation are never stopped and never wait, because the rest leaves
//! them what they may still need; so among all that run somebody always gets on.

use super::Scheduler;
use super::plan::Draft;
use super::sequence::{Phase, Sequence};
use crate::event::{Delivery, Output};

impl Scheduler {
    /// Stops as many requests as it takes for the others to have blocks for the next plans.
    pub(super) fn make_room(&mut self, out: &mut Vec<Delivery>) {
        self.short_of_blocks = false;
        while !self.covers_forecast() {
            self.short_of_blocks = true;
            let Some(victim) = self.victim() else {
                return;
            };
            self.stop(victim, out);
        }
    }

    /// Blocks that can be had now or soon suffice for what the next plans take.
    fn covers_forecast(&self) -> bool {
        let plans = self.limits.depth as usize + 1;
        (0..self.limits.groups.len()).all(|group| {
            let mut prompt_tokens = self.limits.max_prompt_tokens as usize * plans;
            let (mut need, mut stopped) = (0, 0);
            for sequence in self.running.iter() {
                if sequence.stopped {
                    let per_unit = self.cache.pools()[group].blocks_per_unit;
                    stopped += sequence.hold.num_private(group, per_unit);
                    continue;
                }
                let most = sequence.most_positions();
                let ahead = match sequence.phase() {
                    _ if sequence.reserved => most,
                    Phase::Drained => continue,
                    Phase::Decode => plans,
                    Phase::Prefill { remaining } => {
                        let count = prompt_tokens.min(remaining as usize);
                        prompt_tokens -= count;
                        count
                    }
                };
                let tokens = (sequence.num_fed as usize + ahead).min(most);
                need += self.cache.growth(&sequence.hold, group, tokens);
            }
            let have = self.cache.num_available(group) + self.cache.num_pending(group);
            need <= have + stopped
        })
    }

    /// Who is stopped next: of the lowest class, and of these the one that has got least far. Never the oldest of the
    /// highest class, so that one always gets on.
    fn victim(&self) -> Option<u32> {
        let rank = |sequence: &Sequence| (sequence.class, sequence.task.arrival);
        let running = || self.running.iter().filter(|sequence| !sequence.stopped);
        let first = running().map(rank).min()?;
        let candidates = running().filter(|&sequence| {
            !sequence.reserved && rank(sequence) != first && sequence.phase() != Phase::Drained
        });
        let worst = candidates.max_by_key(|sequence| {
            let progress = sequence.task.generated.len();
            let arrival = sequence.task.arrival;
            (sequence.class, std::cmp::Reverse(progress), arrival)
        });
        worst.map(|sequence| sequence.occupancy.seat.index)
    }

    /// Gives the request no more rows. It waits again as soon as its last plan is acknowledged.
    pub(super) fn stop(&mut self, seat: u32, out: &mut Vec<Delivery>) {
        self.publish(seat);
        let sequence = self.running.at_mut(seat);
        sequence.stopped = true;
        sequence.task.preemptions += 1;
        self.cache.start_leaving(&sequence.hold);
        self.counters.preemptions += 1;
        self.outputs.preempted();
        out.push(Delivery {
            request: sequence.id(),
            output: Output::Preempted,
        });
        if sequence.last_plan <= self.acknowledged {
            self.requeue(seat);
        }
    }

    /// Sends those back to the queue that were stopped and have all their results.
    pub(super) fn release_stopped(&mut self) {
        let acknowledged = self.acknowledged;
        let over = self
            .running
            .iter()
            .filter(|sequence| sequence.stopped && sequence.last_plan <= acknowledged);
        let seats: Vec<u32> = over.map(|sequence| sequence.occupancy.seat.index).collect();
        for seat in seats {
            self.requeue(seat);
        }
    }

    /// Blocks of a group that those with a reservation may still take.
    pub(super) fn set_aside(&self, group: usize) -> usize {
        let reserved = self.running.iter().filter(|sequence| sequence.reserved);
        let rest = reserved.map(|sequence| {
            self.cache
                .growth(&sequence.hold, group, sequence.most_positions())
        });
        rest.sum()
    }

    /// Blocks of a group that those who run are expected to take still, at once.
    pub(super) fn promised(&self, group: usize) -> usize {
        let running = self.running.iter().filter(|sequence| !sequence.stopped);
        running.map(|sequence| self.promise(sequence, group)).sum()
    }

    /// Half of what a sequence will still take: by then others have ended (docs/scheduling.md compares). All of it where
    /// it was reserved.
    pub(super) fn promise(&self, sequence: &Sequence, group: usize) -> usize {
        let rest = self.cache.growth(&sequence.hold, group, sequence.expected);
        if sequence.reserved { rest } else { rest / 2 }
    }

    /// Takes the blocks for the next `count` tokens of a sequence, or for as many of them as there is room for; tells for
    /// how many.
    pub(super) fn take_blocks(&mut self, draft: &mut Draft, seat: u32, count: u32) -> u32 {
        let sequence = self.running.at_mut(seat);
        let keep = |group: usize| match sequence.reserved {
            true => 0,
            false => draft.set_aside.get(group).copied().unwrap_or(0),
        };
        let start = sequence.num_fed as usize;
        let mut end = start + count as usize;
        if !self.cache.has_room(&sequence.hold, end, keep) {
            for (group, pool) in self.cache.pools().iter().enumerate() {
                let left = self.cache.num_available(group).saturating_sub(keep(group));
                let blocks = sequence.hold.table(group).len() + left;
                end = end.min(blocks * pool.tokens_per_block);
            }
            if end <= start {
                return 0;
            }
        }
        self.cache
            .grow(&mut sequence.hold, end, |group, index, block| {
                draft.append(seat, group, index, block);
            });
        u32::try_from(end - start).expect("no more than was asked for")
    }
}
