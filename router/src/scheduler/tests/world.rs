//! A tiny engine, a scheduler, and what a naive model of both remembers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::engine::fake::{FakeConfig, FakeShard, IntegerModel};
use crate::engine::{EngineInfo, KvGroup, blob};
use crate::event::{Delivery, Failure, FinishReason, Output};
use crate::request::{Request, RequestId, SamplingParams, Scheduling};
use crate::scheduler::step::{Plan, RowStatus, Rows, StepResult};
use crate::scheduler::{Counters, GroupLimits, Limits, Policy, Scheduler};

const VOCAB: u32 = 23;
const NUM_SEATS: u32 = 5;
const NUM_LANES: u32 = 1;
const MAX_ROWS: u32 = 4;
const MAX_PROMPT_TOKENS: u32 = 7;
const MIXED_SIZES: [u32; 3] = [2, 4, 8];
/// Tokens per block and blocks of two KV groups.
const GROUPS: [(u32, u32); 2] = [(2, 14), (3, 11)];

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Submit {
        prompt_len: u32,
        max_new: u32,
        stops: bool,
        nan: bool,
        penalties: bool,
    },
    Plan,
    Ack,
    /// The result says that this row (modulo the rows) failed.
    AckWithFailure {
        row: usize,
        status: RowStatus,
    },
    Cancel(usize),
    Finish(usize),
}

/// A greedy request with a prompt of its own.
pub(in crate::scheduler) fn request(id: u64, prompt_len: u32, max_new_tokens: u32) -> Request {
    let prompt_ids = (0..u64::from(prompt_len))
        .map(|position| u32::try_from((id * 5 + position * 3) % 22).unwrap())
        .collect();
    Request {
        id: RequestId(id),
        prompt_ids,
        sampling: SamplingParams::greedy(id),
        max_new_tokens,
        stop_ids: Arc::new([]),
        logprobs: None,
        scheduling: Scheduling::default(),
    }
}

/// What the model knows of a request.
#[derive(Debug)]
struct Known {
    request: Request,
    has_started: bool,
    ids: Vec<u32>,
    /// Nothing may be delivered, and no plan may name it.
    gone: bool,
    end: Option<Result<FinishReason, Failure>>,
}

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) blobs: Vec<Bytes>,
    shard: FakeShard,
    model: IntegerModel,
    depth: u32,
    results: VecDeque<StepResult>,
    requests: BTreeMap<RequestId, Known>,
    acknowledged: u64,
    /// Per seat: its blocks as the plans said, by group.
    tables: HashMap<u32, Vec<(u32, u32)>>,
    /// The last plan that could write a block, by group and block.
    last_written: HashMap<(u32, u32), u64>,
    /// The last plan that names a seat.
    last_named: HashMap<u32, u64>,
    /// Ends that the scheduler could not foresee.
    surprises: u64,
    now: Duration,
}

impl World {
    pub(super) fn new(depth: u32) -> Self {
        let groups = GROUPS.map(|(tokens_per_block, num_blocks)| KvGroup {
            tokens_per_block,
            bytes_per_block: 1,
            num_blocks: num_blocks + 1,
        });
        let info = EngineInfo {
            vocab_size: VOCAB,
            groups: groups.to_vec(),
            num_seats: NUM_SEATS,
            num_penalty_lanes: NUM_LANES,
            decode_sizes: vec![MAX_ROWS],
            mixed_sizes: MIXED_SIZES.to_vec(),
            ..FakeConfig::default().info
        };
        let model = IntegerModel::new(VOCAB, 2, 1);
        let limits = Limits {
            vocab_size: VOCAB,
            groups: GROUPS
                .map(|(tokens_per_block, num_blocks)| GroupLimits {
                    tokens_per_block,
                    num_blocks,
                })
                .to_vec(),
            num_seats: NUM_SEATS,
            num_lanes: NUM_LANES,
            max_rows: MAX_ROWS,
            max_prompt_tokens: MAX_PROMPT_TOKENS,
            mixed_sizes: MIXED_SIZES.to_vec(),
            depth,
        };
        Self {
            scheduler: Scheduler::new(
                Limits::new(limits).unwrap(),
                Policy::default(),
                Counters::default(),
            ),
            blobs: Vec::new(),
            shard: FakeShard::new(&info, model.clone()),
            model,
            depth,
            results: VecDeque::new(),
            requests: BTreeMap::new(),
            acknowledged: 0,
            tables: HashMap::new(),
            last_written: HashMap::new(),
            last_named: HashMap::new(),
            surprises: 0,
            now: Duration::ZERO,
        }
    }

    pub(super) fn apply(&mut self, op: Op) {
        self.now += Duration::from_millis(1);
        match op {
            Op::Submit {
                prompt_len,
                max_new,
                stops,
                nan,
                penalties,
            } => {
                let id = self.requests.len() as u64;
                let mut request = request(id, prompt_len, max_new);
                if stops {
                    request.stop_ids = (0..VOCAB / 3).collect();
                }
                if nan {
                    let mut ids = request.prompt_ids.to_vec();
                    let middle = ids.len() / 2;
                    ids[middle] = self.model.nan_token();
                    request.prompt_ids = ids.into();
                }
                if penalties {
                    request.sampling.repetition_penalty = 1.5;
                }
                self.submit(request);
            }
            Op::Plan => {
                self.plan();
            }
            Op::Ack => self.ack(None),
            Op::AckWithFailure { row, status } => self.ack(Some((row, status))),
            Op::Cancel(pick) => {
                if let Some(id) = self.leave(pick) {
                    self.scheduler.cancel(id);
                }
            }
            Op::Finish(pick) => {
                if let Some(id) = self.leave(pick) {
                    self.scheduler.finish(id);
                }
            }
        }
    }

    fn submit(&mut self, request: Request) {
        let mut out = Vec::new();
        let known = Known {
            request: request.clone(),
            has_started: false,
            ids: Vec::new(),
            gone: false,
            end: None,
        };
        self.requests.insert(request.id, known);
        self.scheduler.submit(request, self.now, &mut out);
        self.deliver(out);
    }

    /// Picks a request that lives; from now on nobody wants it.
    fn leave(&mut self, pick: usize) -> Option<RequestId> {
        let live: Vec<RequestId> = self
            .requests
            .iter()
            .filter(|(_, known)| !known.gone && known.end.is_none())
            .map(|(&id, _)| id)
            .collect();
        let id = *live.get(pick.checked_rem(live.len())?)?;
        self.requests.get_mut(&id)?.gone = true;
        self.surprises += 1;
        Some(id)
    }

    /// True if there was a plan.
    fn plan(&mut self) -> bool {
        let in_flight = self.results.len();
        let plan = self.scheduler.plan(self.now);
        let Some(plan) = plan else {
            if in_flight == 0 {
                assert!(!self.scheduler.has_work(), "work, and nothing under way");
            }
            return false;
        };
        assert!(in_flight < self.depth as usize, "too many plans in flight");
        self.check_plan(&plan);
        let blob = blob::encode(&plan);
        let result = self.shard.execute(plan.id, &blob);
        self.results
            .push_back(result.expect("the strict fake has no complaint"));
        self.blobs.push(blob);
        true
    }

    fn check_plan(&mut self, plan: &Plan) {
        for seat in &plan.frees {
            self.last_named.insert(seat.index, plan.id);
            self.tables.remove(&seat.index);
        }
        for registration in &plan.registrations {
            let seat = registration.seat.index;
            let named = self.last_named.insert(seat, plan.id).unwrap_or(0);
            assert!(named <= self.acknowledged, "seat {seat} before its fence");
        }
        for append in &plan.appends {
            let block = (append.group, append.block);
            let written = self.last_written.get(&block).copied().unwrap_or(0);
            assert!(
                written <= self.acknowledged,
                "block {block:?} before its fence"
            );
            self.tables.entry(append.seat).or_default().push(block);
        }
        let running = self.scheduler.in_flight.back().unwrap();
        let seats: Vec<u32> = running.rows.iter().map(|row| row.seat.index).collect();
        if let Rows::Listed(rows) = &plan.rows {
            assert!(rows.iter().map(|row| row.seat).eq(seats.iter().copied()));
        }
        for seat in &seats {
            let id = self.scheduler.running.at(*seat).request.id;
            assert!(!self.requests[&id].gone, "{id:?} is known to be gone");
            self.last_named.insert(*seat, plan.id);
            for block in &self.tables[seat] {
                self.last_written.insert(*block, plan.id);
            }
        }
        assert!(plan.rows.len() <= MAX_ROWS as usize);
        assert!(plan.feed_ids.len() <= MAX_PROMPT_TOKENS as usize);
    }

    fn ack(&mut self, failure: Option<(usize, RowStatus)>) {
        let Some(mut result) = self.results.pop_front() else {
            return;
        };
        if let Some((row, status)) = failure
            && let Some(index) = row.checked_rem(result.rows.len())
            && result.rows[index].status == RowStatus::Ok
        {
            let before: u32 = result.rows[..index].iter().map(|row| row.num_tokens).sum();
            let row = &mut result.rows[index];
            if row.num_tokens > 0 {
                result.token_ids.remove(before as usize);
            }
            (row.status, row.num_tokens) = (status, 0);
            self.surprises += 1;
        }
        let mut out = Vec::new();
        let applied = self.scheduler.apply(&result, self.now, &mut out);
        applied.expect("the result is that of the plan");
        self.acknowledged = result.plan_id;
        self.deliver(out);
    }

    fn deliver(&mut self, out: Vec<Delivery>) {
        for Delivery { request, output } in out {
            let known = self.requests.get_mut(&request).unwrap();
            assert!(
                !known.gone && known.end.is_none(),
                "after the end: {output:?}"
            );
            match output {
                Output::Started { .. } => {
                    assert!(!known.has_started, "{request:?} starts twice");
                    known.has_started = true;
                }
                Output::Preempted => (),
                Output::Token(token) => {
                    assert!(
                        known.has_started,
                        "{request:?} has a token before it starts"
                    );
                    known.ids.push(token.id);
                }
                Output::Finished { reason, timings: _ } => known.end = Some(Ok(reason)),
                Output::Failed(failure) => {
                    self.surprises += 1;
                    known.end = Some(Err(failure));
                }
            }
            if known.end == Some(Ok(FinishReason::EndOfSequence)) {
                self.surprises += 1;
            }
            let count = known.request.max_new_tokens as usize;
            let expected = self.model.generate(&known.request.prompt_ids, count);
            assert!(expected.starts_with(&known.ids), "{:?}", known.ids);
        }
    }

    /// Runs until nothing is left. Whenever something runs, some request gets on within a few steps.
    pub(super) fn drain(&mut self) {
        let progress = |world: &Self| {
            let ids: usize = world.requests.values().map(|known| known.ids.len()).sum();
            let ends = world.requests.values().filter(|known| known.end.is_some());
            ids + ends.count()
        };
        let (mut last, mut quiet) = (progress(self), 0);
        while self.scheduler.has_work() || !self.results.is_empty() {
            while self.plan() {}
            self.ack(None);
            self.check_inventory();
            let now = progress(self);
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
            assert!(quiet < 12, "no progress in 12 steps");
        }
    }

    /// Every block is in exactly one place, and so is every seat and lane.
    pub(super) fn check_inventory(&self) {
        for (group, pool) in self.scheduler.pools.iter().enumerate() {
            let (mut blocks, fenced) = pool.idle_blocks();
            for &(fence, block) in &fenced {
                assert!(fence > self.acknowledged, "block {block} waits for nothing");
                blocks.push(block);
            }
            let mut used = 0;
            for sequence in self.scheduler.running.iter() {
                let lease = sequence.leases[group].blocks();
                used += lease.len();
                blocks.extend(lease);
            }
            blocks.sort_unstable();
            assert!(blocks.iter().copied().eq(1..=GROUPS[group].1), "{blocks:?}");
            assert_eq!(pool.used(), used);
        }
        let running = self.scheduler.running.len();
        assert_eq!(running + self.scheduler.seats.idle(), NUM_SEATS as usize);
        let lanes = self.scheduler.running.iter();
        let lanes = lanes.filter(|sequence| sequence.occupancy.lane.is_some());
        assert_eq!(
            lanes.count() + self.scheduler.seats.idle_lanes(),
            NUM_LANES as usize
        );
    }

    pub(super) fn check_end(mut self) {
        for (id, known) in &self.requests {
            if known.gone {
                continue;
            }
            let count = known.request.max_new_tokens as usize;
            let expected = self.model.generate(&known.request.prompt_ids, count);
            let stop = expected
                .iter()
                .position(|id| known.request.stop_ids.contains(id));
            match known.end.as_ref().expect("every request ends") {
                Ok(FinishReason::Length) => {
                    assert_eq!(known.ids, expected, "{id:?}");
                    assert!(stop.is_none_or(|stop| stop + 1 == count));
                }
                Ok(FinishReason::EndOfSequence) => {
                    assert_eq!(Some(known.ids.len()), stop.map(|stop| stop + 1), "{id:?}");
                    assert!(known.ids.len() < count, "{id:?}: length comes first");
                }
                Ok(FinishReason::StopSequence) => panic!("the scheduler sees no text"),
                Err(_) => (),
            }
        }
        let counters = self.scheduler.counters();
        assert_eq!(counters.blocks_used, 0);
        assert_eq!((counters.running, counters.queued), (0, 0));
        assert_eq!(counters.running_max_tokens, 0);
        let ends = counters.finished + counters.failed + counters.cancelled;
        assert_eq!(ends, self.requests.len() as u64);
        // None on length, and none beyond the plans in flight when the end came.
        let most = self.surprises * u64::from(self.depth);
        assert!(counters.wasted_rows <= most, "{counters:?}");
    }
}
