//! A tiny engine, a scheduler, and what a naive model of both remembers.

mod checks;
mod size;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::memory::Memory;
use crate::engine::fake::{FakeConfig, FakeShard, IntegerModel};
use crate::engine::{EngineInfo, KvGroup, blob};
use crate::event::{Delivery, Failure, FinishReason, Output};
use crate::request::{Request, RequestId, SamplingParams, Scheduling};
use crate::scheduler::outputs::Outputs;
use crate::scheduler::sequence::Sequence;
use crate::scheduler::step::{Plan, Row, RowStatus, Rows, Seat, StepResult};
use crate::scheduler::{Counters, GroupLimits, Limits, Policy, Reserve, Scheduler};
pub(super) use size::{SIZES, Size};

pub(super) const VOCAB: u32 = 23;

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) depth: u32,
    pub(super) size: &'static Size,
    pub(super) reserve: Reserve,
    pub(super) prefix_cache: bool,
}

/// A request to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// Prompts of one family have the same tokens up to `shared`.
    pub(super) family: u32,
    pub(super) shared: u32,
    pub(super) prompt_len: u32,
    pub(super) max_new: u32,
    pub(super) stops: bool,
    pub(super) nan: bool,
    pub(super) penalties: bool,
    pub(super) class: u8,
    pub(super) tenant: u64,
    pub(super) salt: u64,
    /// Milliseconds; 0 is none.
    pub(super) queue_timeout: u64,
    pub(super) total_timeout: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Submit(Asked),
    Plan,
    Ack,
    /// The result says that this row (modulo the rows) failed.
    AckWithFailure {
        row: usize,
        status: RowStatus,
    },
    Cancel(usize),
    Finish(usize),
    /// A running request is stopped as if there were too few blocks.
    Preempt(usize),
    /// Milliseconds pass.
    Wait(u64),
    /// The engine is lost with all plans in flight, and another one is opened.
    Crash(&'static Size),
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
    /// Prompt and the whole answer, as one computes it alone.
    oracle: Vec<u32>,
    has_started: bool,
    num_tokens: usize,
    /// Nothing may be delivered, and no plan may name it.
    gone: bool,
    end: Option<Result<FinishReason, Failure>>,
}

pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) blobs: Vec<Bytes>,
    /// What every engine was told and should answer, as JSON lines: see `record_histories`.
    pub(super) record: String,
    setup: Setup,
    shard: FakeShard,
    model: IntegerModel,
    results: VecDeque<StepResult>,
    requests: BTreeMap<RequestId, Known>,
    memory: Memory,
    /// Rows of the last plan.
    rows: Vec<Row>,
    /// Ends that the scheduler could not foresee.
    surprises: u64,
    crashes: u64,
    progress: u64,
    quiet: u32,
    now: Duration,
}

fn limits(setup: Setup) -> Limits {
    let size = setup.size;
    let groups = size.groups.iter();
    let groups = groups.map(|&(tokens_per_block, num_blocks)| GroupLimits {
        tokens_per_block,
        num_blocks,
    });
    let limits = Limits {
        vocab_size: VOCAB,
        groups: groups.collect(),
        num_seats: size.num_seats,
        num_lanes: size.num_lanes,
        max_rows: size.max_rows,
        max_prompt_tokens: size.max_prompt_tokens,
        mixed_sizes: size.mixed_sizes.to_vec(),
        depth: setup.depth,
    };
    Limits::new(limits).unwrap()
}

fn shard(setup: Setup, model: &IntegerModel) -> FakeShard {
    let size = setup.size;
    let groups = size.groups.iter();
    let groups = groups.map(|&(tokens_per_block, num_blocks)| KvGroup {
        tokens_per_block,
        bytes_per_block: 1,
        num_blocks: num_blocks + 1,
    });
    let info = EngineInfo {
        vocab_size: VOCAB,
        groups: groups.collect(),
        num_seats: size.num_seats,
        num_penalty_lanes: size.num_lanes,
        decode_sizes: vec![size.max_rows],
        mixed_sizes: size.mixed_sizes.to_vec(),
        ..FakeConfig::default().info
    };
    FakeShard::new(&info, model.clone())
}

fn memory(setup: Setup) -> Memory {
    Memory::new(setup.size.groups.iter().map(|&(size, _)| size).collect())
}

/// Makes a row's result that of a failure.
fn fail(result: &mut StepResult, index: usize, status: RowStatus) {
    let before: u32 = result.rows[..index].iter().map(|row| row.num_tokens).sum();
    let row = &mut result.rows[index];
    if row.num_tokens > 0 {
        result.token_ids.remove(before as usize);
    }
    (row.status, row.num_tokens) = (status, 0);
}

/// An engine is opened.
fn engine_line(setup: Setup) -> String {
    format!("{{\"depth\":{}}}\n", setup.depth)
}

/// A plan, and for each of its rows seat, generation and status, then the tokens of all.
fn plan_line(blob: &Bytes, result: &StepResult) -> String {
    let rows = result.rows.iter().map(|row| {
        let Seat { index, generation } = row.seat;
        (index, generation, row.status.name())
    });
    let line = serde_json::json!({
        "id": result.plan_id,
        "blob": blob.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "rows": rows.collect::<Vec<_>>(),
        "token_ids": result.token_ids,
    });
    format!("{line}\n")
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        let model = IntegerModel::new(VOCAB, 2, 1);
        let policy = Policy {
            prefix_cache: setup.prefix_cache,
            reserve: setup.reserve,
            max_queue: 12,
            ..Policy::default()
        };
        let mut scheduler = Scheduler::new(limits(setup), policy, Counters::default());
        scheduler.outputs = Outputs::reckless();
        Self {
            scheduler,
            blobs: Vec::new(),
            record: engine_line(setup),
            setup,
            shard: shard(setup, &model),
            model,
            results: VecDeque::new(),
            requests: BTreeMap::new(),
            memory: memory(setup),
            rows: Vec::new(),
            surprises: 0,
            crashes: 0,
            progress: 0,
            quiet: 0,
            now: Duration::ZERO,
        }
    }

    pub(super) fn apply(&mut self, op: Op) {
        self.now += Duration::from_millis(1);
        match op {
            Op::Submit(asked) => self.submit(asked),
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
            Op::Preempt(pick) => self.preempt(pick),
            Op::Wait(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                let mut out = Vec::new();
                self.scheduler.expire(self.now, &mut out);
                self.deliver(out);
            }
            Op::Crash(size) => self.crash(size),
        }
    }

    fn submit(&mut self, asked: Asked) {
        let id = self.requests.len() as u64;
        let mut request = request(id, asked.prompt_len, asked.max_new);
        let shared = asked.shared.min(asked.prompt_len) as usize;
        let mut ids = request.prompt_ids.to_vec();
        for (token, position) in ids[..shared].iter_mut().zip(0..) {
            *token = (asked.family * 7 + position * 5) % (VOCAB - 1);
        }
        if asked.nan {
            let middle = ids.len() / 2;
            ids[middle] = self.model.nan_token();
        }
        request.prompt_ids = ids.into();
        if asked.stops {
            request.stop_ids = (0..VOCAB / 3).collect();
        }
        if asked.penalties {
            request.sampling.repetition_penalty = 1.5;
        }
        let timeout = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        request.scheduling = Scheduling {
            class: asked.class,
            tenant: asked.tenant,
            cache_salt: asked.salt,
            queue_timeout: timeout(asked.queue_timeout),
            total_timeout: timeout(asked.total_timeout),
        };
        let mut oracle = request.prompt_ids.to_vec();
        let answer = self.model.generate(&oracle, asked.max_new as usize);
        oracle.extend(answer);
        let known = Known {
            request: request.clone(),
            oracle,
            has_started: false,
            num_tokens: 0,
            gone: false,
            end: None,
        };
        self.requests.insert(request.id, known);
        let mut out = Vec::new();
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
        self.progress += 1;
        Some(id)
    }

    fn preempt(&mut self, pick: usize) {
        let running = self.scheduler.running.iter();
        let can_stop = |sequence: &&Sequence| !sequence.reserved && !sequence.stopped;
        let seats = running
            .filter(can_stop)
            .map(|sequence| sequence.occupancy.seat.index);
        let seats: Vec<u32> = seats.collect();
        let mut out = Vec::new();
        if let Some(index) = pick.checked_rem(seats.len()) {
            self.scheduler.stop(seats[index], &mut out);
            self.progress += 1;
        }
        self.deliver(out);
    }

    fn crash(&mut self, size: &'static Size) {
        self.setup.size = size;
        self.results.clear();
        self.shard = shard(self.setup, &self.model);
        self.record += &engine_line(self.setup);
        self.memory = memory(self.setup);
        self.rows.clear();
        self.crashes += 1;
        self.progress += 1;
        let mut out = Vec::new();
        self.scheduler.replay(limits(self.setup), &mut out);
        self.deliver(out);
    }

    /// True if there was a plan.
    fn plan(&mut self) -> bool {
        let in_flight = self.results.len();
        let mut out = Vec::new();
        let plan = self.scheduler.plan(self.now, &mut out);
        self.deliver(out);
        let Some(plan) = plan else {
            if in_flight == 0 {
                assert!(!self.scheduler.has_work(), "work, and nothing under way");
            }
            return false;
        };
        assert!(
            in_flight < self.setup.depth as usize,
            "too many plans in flight"
        );
        if let Rows::Listed(rows) = &plan.rows {
            self.rows.clone_from(rows);
        }
        let rows = self.rows.clone();
        self.memory.edit(&plan, &rows);
        let blob = blob::encode(&plan);
        let result = self.shard.execute(plan.id, &blob);
        let result = result.expect("the strict fake has no complaint");
        self.check_plan(&plan, &rows);
        self.record += &plan_line(&blob, &result);
        self.results.push_back(result);
        self.blobs.push(blob);
        true
    }

    fn check_plan(&mut self, plan: &Plan, rows: &[Row]) {
        let mut ids = plan.feed_ids.as_slice();
        for row in rows {
            let sequence = self.scheduler.running.at(row.seat);
            let known = &self.requests[&sequence.id()];
            assert!(!known.gone, "{:?} is known to be gone", sequence.id());
            let count = row.feed.map_or(0, |feed| feed.count as usize);
            let (fed, rest) = ids.split_at(count);
            ids = rest;
            let position = sequence.num_fed as usize;
            let computed = match row.feed {
                Some(_) => fed,
                // After a NaN nothing is known of what goes on.
                None if known.oracle.len() < position => continue,
                None => &known.oracle[position - 1..position],
            };
            // Also for a row that fails, until its result says so: the plan is all that the scheduler goes by.
            self.memory.run(plan.id, row, computed, &known.oracle);
        }
        assert!(plan.rows.len() <= self.setup.size.max_rows as usize);
        assert!(plan.feed_ids.len() <= self.setup.size.max_prompt_tokens as usize);
    }

    fn ack(&mut self, failure: Option<(usize, RowStatus)>) {
        let Some(mut result) = self.results.pop_front() else {
            return;
        };
        if let Some((row, status)) = failure
            && let Some(index) = row.checked_rem(result.rows.len())
            && result.rows[index].status == RowStatus::Ok
        {
            let seat = result.rows[index].seat;
            fail(&mut result, index, status);
            // As a real shard would: whatever it was sent for the seat meanwhile finds it dead.
            for later in &mut self.results {
                if let Some(index) = later.rows.iter().position(|row| row.seat == seat) {
                    fail(later, index, RowStatus::Dead);
                }
            }
            self.surprises += 1;
        }
        for row in &result.rows {
            match row.status {
                RowStatus::Ok => (),
                // Wherever it came from.
                RowStatus::Nan => self.memory.void(row.seat, 0),
                _ => self.memory.void(row.seat, result.plan_id),
            }
        }
        let mut out = Vec::new();
        let applied = self.scheduler.apply(&result, self.now, &mut out);
        applied.expect("the result is that of the plan");
        self.memory.acknowledged = result.plan_id;
        let before = self.progress;
        self.deliver(out);
        self.quiet = if self.progress == before {
            self.quiet + 1
        } else {
            0
        };
        let most = self.setup.size.max_quiet;
        assert!(self.quiet < most, "no progress in {most} steps");
    }

    fn deliver(&mut self, out: Vec<Delivery>) {
        for Delivery { request, output } in out {
            self.progress += 1;
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
                    assert!(known.has_started, "{request:?} has a token too early");
                    let position = known.request.prompt_ids.len() + known.num_tokens;
                    assert_eq!(Some(&token.id), known.oracle.get(position), "{request:?}");
                    known.num_tokens += 1;
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
        }
    }

    /// Runs until nothing is left.
    pub(super) fn drain(&mut self) {
        while self.scheduler.has_work() || !self.results.is_empty() {
            self.now += Duration::from_millis(1);
            while self.plan() {}
            self.ack(None);
            self.check_inventory();
        }
    }
}
