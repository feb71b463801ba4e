//! What must hold after every step, and at the end.

use super::{Size, World};
use crate::event::FinishReason;
use crate::scheduler::admit::MAX_PASSED;

impl World {
    /// Every block is in exactly one place, and so is every seat and lane; every count is what a naive one gives.
    pub(in crate::scheduler::tests) fn check_inventory(&mut self) {
        let scheduler = &self.scheduler;
        let &Size {
            groups,
            num_seats,
            num_lanes,
            ..
        } = self.setup.size;
        let cached = scheduler.cache.tree().units();
        for (group, pool) in scheduler.cache.pools().iter().enumerate() {
            let (mut blocks, fenced) = pool.idle_blocks();
            for &(fence, block) in &fenced {
                assert!(
                    fence > self.memory.acknowledged,
                    "{block} waits for nothing"
                );
                blocks.push(block);
            }
            let before: usize = scheduler.cache.pools()[..group]
                .iter()
                .map(|pool| pool.blocks_per_unit)
                .sum();
            for (_, _, unit) in &cached {
                blocks.extend(&unit[before..before + pool.blocks_per_unit]);
            }
            for sequence in scheduler.running.iter() {
                let private = sequence.hold.private_blocks(group, pool.blocks_per_unit);
                let num_private = sequence.hold.num_private(group, pool.blocks_per_unit);
                assert_eq!(private.len(), num_private);
                blocks.extend(private);
            }
            blocks.sort_unstable();
            let total = groups[group].1;
            assert!(
                blocks.iter().copied().eq(1..=total),
                "group {group}: {blocks:?}"
            );
        }
        let num_tokens = u32::try_from(scheduler.cache.tokens_per_unit()).unwrap();
        for (_, ids, blocks) in &cached {
            self.memory.check_cached(ids, num_tokens, blocks);
        }
        let paths = |stopped: bool| {
            let running = scheduler.running.iter();
            let running = running.filter(move |sequence| sequence.stopped == stopped);
            running.filter_map(|sequence| sequence.hold.path())
        };
        let live: Vec<_> = paths(false).collect();
        let leaving: Vec<_> = paths(true)
            .chain(scheduler.cache.departed_paths())
            .collect();
        scheduler.cache.tree().audit(&live, &leaving);
        let running = scheduler.running.len();
        assert_eq!(running + scheduler.seats.idle(), num_seats as usize);
        let lanes = scheduler.running.iter();
        let lanes = lanes.filter(|sequence| sequence.occupancy.lane.is_some());
        assert_eq!(
            lanes.count() + scheduler.seats.idle_lanes(),
            num_lanes as usize
        );
        for task in scheduler.queue.iter() {
            assert!(task.passed <= MAX_PASSED, "passed {} times", task.passed);
        }
    }

    pub(in crate::scheduler::tests) fn check_end(&mut self) {
        for (id, known) in &self.requests {
            if known.gone {
                continue;
            }
            let prompt_len = known.request.prompt_ids.len();
            let count = known.request.max_new_tokens as usize;
            let answer = &known.oracle[prompt_len..];
            let stop = answer
                .iter()
                .position(|id| known.request.stop_ids.contains(id));
            match known.end.as_ref().expect("every request ends") {
                Ok(FinishReason::Length) => {
                    assert_eq!(known.num_tokens, count, "{id:?}");
                    assert!(stop.is_none_or(|stop| stop + 1 == count));
                }
                Ok(FinishReason::EndOfSequence) => {
                    assert_eq!(Some(known.num_tokens), stop.map(|stop| stop + 1), "{id:?}");
                    assert!(known.num_tokens < count, "{id:?}: length comes first");
                }
                Ok(FinishReason::StopSequence) => panic!("the scheduler sees no text"),
                Err(_) => (),
            }
        }
        let counters = self.scheduler.counters();
        assert_eq!(counters.blocks_used, 0);
        assert_eq!((counters.running, counters.queued), (0, 0));
        assert_eq!(counters.running_max_tokens, 0);
        assert_eq!(self.scheduler.next_deadline(), None);
        let ends = counters.finished + counters.failed + counters.cancelled;
        assert_eq!(ends, self.requests.len() as u64);
        // None on length, and none beyond the plans in flight when the end came, or when a prefix turned out to be void.
        let readers = u64::from(self.setup.size.max_rows);
        let most = self.surprises * u64::from(self.setup.depth) * readers;
        assert!(counters.wasted_rows <= most, "{counters:?}");
    }
}
