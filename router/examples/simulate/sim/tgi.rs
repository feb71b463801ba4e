//! TGI's policy (v3 backend, without chunked prefill): first come, first served; a request is admitted when prompt and
//! all tokens that it may generate fit; prompts are computed in steps of their own, up to `max_batch_prefill_tokens`
//! together, while the running streams stand still. New prompts join when the running batch is empty, when enough wait
//! (0.3 of the batch), or when 20 tokens have passed. A prompt's full blocks can be shared once its request has ended.
//!
//! Left out, in its favour: time on the host. A prompt of more than `max_batch_prefill_tokens`
//! gets a step for itself (TGI would refuse it or, on some GPUs, cut it in chunks). Its limit of 128 concurrent requests
//! is left out, too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::blocks::{Blocks, Held, blocks_for, extend_chain};
use super::machine::{Machine, TOKENS_PER_BLOCK, Work};
use super::server::{Event, Events, Server};
use super::trace::Job;

const WAITING_SERVED_RATIO: f64 = 0.3;
const MAX_WAITING_TOKENS: u32 = 20;

struct Sequence {
    job: Arc<Job>,
    held: Held,
    chain: Vec<u64>,
    cached_tokens: u32,
    generated: u32,
}

pub(crate) struct Tgi {
    max_prefill_tokens: u32,
    max_rows: usize,
    blocks: Blocks,
    waiting: VecDeque<Arc<Job>>,
    running: Vec<Sequence>,
    /// Prompts in the step that runs; none: it decodes.
    prefilling: Vec<Sequence>,
    /// Decode steps since prompts joined last.
    waited: u32,
    /// Between two steps with prompts there is one without, as long as somebody runs.
    decode_next: bool,
}

impl Tgi {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self {
            max_prefill_tokens: machine.max_prompt_tokens,
            max_rows: machine.max_rows as usize,
            blocks: Blocks::new(machine.num_blocks()),
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefilling: Vec::new(),
            waited: 0,
            decode_next: false,
        }
    }

    fn may_join(&self) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let enough = (self.running.len() as f64 * WAITING_SERVED_RATIO).floor();
        !self.decode_next
            && (self.waited >= MAX_WAITING_TOKENS || self.waiting.len() as f64 >= enough)
    }

    fn next_prompts(&mut self) -> Work {
        let mut work = Work::default();
        while self.running.len() + self.prefilling.len() < self.max_rows {
            let Some(job) = self.waiting.front() else {
                break;
            };
            let mut chain = Vec::new();
            extend_chain(&mut chain, job, job.prompt_len());
            let most = (job.prompt.len() - 1) / TOKENS_PER_BLOCK;
            let (found, idle) = self.blocks.find(&chain[..most]);
            let cached_tokens = u32::try_from(found * TOKENS_PER_BLOCK).expect("it is short");
            let count = job.prompt_len() - cached_tokens;
            let total = blocks_for(job.prompt_len() + job.max_tokens - 1);
            let fits = total - found + idle <= self.blocks.available();
            let in_budget = work.prompt_tokens + count <= self.max_prefill_tokens;
            if !fits || !(in_budget || work.is_empty()) {
                break;
            }
            let mut held = Held::default();
            self.blocks.share(&mut held, &chain[..found]);
            let grown = self.blocks.grow(&mut held, total);
            assert!(grown, "it was seen to fit");
            work.feed(cached_tokens, count);
            self.prefilling.push(Sequence {
                job: self.waiting.pop_front().expect("it was seen"),
                held,
                chain,
                cached_tokens,
                generated: 0,
            });
        }
        work
    }

    /// One token more; true if it was the last.
    fn take_token(sequence: &mut Sequence, out: &mut Events) -> bool {
        sequence.generated += 1;
        out.push((sequence.job.id, Event::Token));
        let is_last = sequence.generated == sequence.job.output_tokens;
        if is_last {
            out.push((sequence.job.id, Event::Finished));
        }
        is_last
    }

    fn end(&mut self, mut sequence: Sequence) {
        let cached = sequence.cached_tokens as usize / TOKENS_PER_BLOCK;
        for &hash in &sequence.chain[cached..] {
            self.blocks.publish(&mut sequence.held, hash);
        }
        self.blocks.release(sequence.held);
    }
}

impl Server for Tgi {
    fn submit(&mut self, job: Arc<Job>, _now: Duration, _out: &mut Events) {
        self.waiting.push_back(job);
    }

    fn plan(&mut self, _now: Duration, _out: &mut Events) -> Option<Work> {
        if self.may_join() {
            let work = self.next_prompts();
            if !work.is_empty() {
                self.decode_next = true;
                self.waited = 0;
                return Some(work);
            }
        }
        self.decode_next = false;
        self.waited += 1;
        let mut work = Work::default();
        for sequence in &self.running {
            work.decode(sequence.job.prompt_len() + sequence.generated);
        }
        (!work.is_empty()).then_some(work)
    }

    fn apply(&mut self, _took: Duration, _now: Duration, out: &mut Events) {
        let prefilled = std::mem::take(&mut self.prefilling);
        let stepped = match prefilled.is_empty() {
            true => std::mem::take(&mut self.running),
            false => prefilled,
        };
        for mut sequence in stepped {
            if sequence.generated == 0 {
                let cached_tokens = sequence.cached_tokens;
                out.push((sequence.job.id, Event::Started { cached_tokens }));
            }
            if Self::take_token(&mut sequence, out) {
                self.end(sequence);
            } else {
                self.running.push(sequence);
            }
        }
    }
}
