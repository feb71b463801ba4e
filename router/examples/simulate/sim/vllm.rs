//! vLLM's policy (V1 scheduler): first come, first served; one budget of tokens a step, running requests first; blocks
//! on demand, and when there are none the request admitted last is stopped, to be computed again from what is cached.
//! A prompt is admitted when all its blocks fit. Full blocks of prompts and answers are shared by hash.
//!
//! Left out, all in its favour: time on the host (a step is planned when the one before has ended, and starts at once),
//! and the token lost after a stop. Also left out: priorities, a limit on the queue (it has none).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::blocks::{Blocks, Held, blocks_for, extend_chain};
use super::machine::{Machine, TOKENS_PER_BLOCK, Work};
use super::server::{Event, Events, Server};
use super::trace::Job;

struct Sequence {
    job: Arc<Job>,
    held: Held,
    /// Hashes of its full blocks, as far as they were needed.
    chain: Vec<u64>,
    computed: u32,
    generated: u32,
    /// Tokens in the step that runs.
    scheduled: u32,
    cached_tokens: u32,
}

impl Sequence {
    fn known(&self) -> u32 {
        self.job.prompt_len() + self.generated
    }
}

pub(crate) struct Vllm {
    token_budget: u32,
    max_rows: usize,
    blocks: Blocks,
    waiting: VecDeque<Sequence>,
    /// In order of admission.
    running: Vec<Sequence>,
}

impl Vllm {
    pub(crate) fn new(machine: &Machine, token_budget: u32) -> Self {
        Self {
            token_budget,
            max_rows: machine.max_rows as usize,
            blocks: Blocks::new(machine.num_blocks()),
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Rows of those who run; true if somebody had to be stopped.
    fn schedule_running(&mut self, budget: &mut u32, out: &mut Events) -> bool {
        let mut stopped = false;
        let mut index = 0;
        while index < self.running.len() && *budget > 0 {
            let sequence = &mut self.running[index];
            let count = (sequence.known() - sequence.computed).min(*budget);
            let blocks = blocks_for(sequence.computed + count);
            if !self.blocks.grow(&mut sequence.held, blocks) {
                let mut last = self.running.pop().expect("at least this one runs");
                out.push((last.job.id, Event::Preempted));
                self.blocks.release(std::mem::take(&mut last.held));
                *budget += last.scheduled;
                (last.computed, last.scheduled) = (0, 0);
                self.waiting.push_front(last);
                stopped = true;
                continue;
            }
            sequence.scheduled = count;
            *budget -= count;
            index += 1;
        }
        stopped
    }

    fn admit(&mut self, budget: &mut u32) {
        while *budget > 0 && self.running.len() < self.max_rows {
            let Some(mut sequence) = self.waiting.pop_front() else {
                return;
            };
            let known = sequence.known();
            extend_chain(&mut sequence.chain, &sequence.job, known);
            let most = (known as usize - 1) / TOKENS_PER_BLOCK;
            let (found, idle) = self.blocks.find(&sequence.chain[..most]);
            if blocks_for(known) - found + idle > self.blocks.available() {
                self.waiting.push_front(sequence);
                return;
            }
            let hit = &sequence.chain[..found];
            self.blocks.share(&mut sequence.held, hit);
            sequence.computed = u32::try_from(found * TOKENS_PER_BLOCK).expect("it is short");
            if sequence.generated == 0 {
                sequence.cached_tokens = sequence.computed;
            }
            let count = (known - sequence.computed).min(*budget);
            let blocks = blocks_for(sequence.computed + count);
            let grown = self.blocks.grow(&mut sequence.held, blocks);
            assert!(grown, "there is room for the whole prompt");
            sequence.scheduled = count;
            *budget -= count;
            self.running.push(sequence);
        }
    }
}

impl Server for Vllm {
    fn submit(&mut self, job: Arc<Job>, _now: Duration, _out: &mut Events) {
        self.waiting.push_back(Sequence {
            job,
            held: Held::default(),
            chain: Vec::new(),
            computed: 0,
            generated: 0,
            scheduled: 0,
            cached_tokens: 0,
        });
    }

    fn plan(&mut self, _now: Duration, out: &mut Events) -> Option<Work> {
        let mut budget = self.token_budget;
        if !self.schedule_running(&mut budget, out) {
            self.admit(&mut budget);
        }
        let mut work = Work::default();
        for sequence in &self.running {
            match sequence.scheduled {
                0 => (),
                1 if sequence.generated > 0 => work.decode(sequence.computed),
                count => work.feed(sequence.computed, count),
            }
        }
        (!work.is_empty()).then_some(work)
    }

    fn apply(&mut self, _took: Duration, _now: Duration, out: &mut Events) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            index += 1;
            if sequence.scheduled == 0 {
                continue;
            }
            let full = sequence.computed as usize / TOKENS_PER_BLOCK;
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            extend_chain(&mut sequence.chain, &sequence.job, sequence.computed);
            for &hash in &sequence.chain[full..sequence.computed as usize / TOKENS_PER_BLOCK] {
                self.blocks.publish(&mut sequence.held, hash);
            }
            if sequence.computed < sequence.known() {
                continue;
            }
            if sequence.generated == 0 {
                let cached_tokens = sequence.cached_tokens;
                out.push((sequence.job.id, Event::Started { cached_tokens }));
            }
            sequence.generated += 1;
            out.push((sequence.job.id, Event::Token));
            if sequence.generated == sequence.job.output_tokens {
                out.push((sequence.job.id, Event::Finished));
                index -= 1;
                let ended = self.running.remove(index);
                self.blocks.release(ended.held);
            }
        }
    }
}
