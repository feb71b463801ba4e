//! A running request, and the table of all that run.

use std::collections::HashMap;

use super::kv_cache::Hold;
use super::limits::positions_written;
use super::seats::Occupancy;
use super::step::Registration;
use super::task::Task;
use crate::request::{Request, RequestId};

/// What a sequence's next row would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// This many tokens, of the prompt or of the answer before a preemption, are not in a plan yet.
    Prefill { remaining: u32 },
    /// Continues from its last sampled token.
    Decode,
    /// Every token it may have is in a plan, or it has been stopped; it waits for results.
    Drained,
}

/// One running request.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) task: Task,
    pub(super) occupancy: Occupancy,
    pub(super) hold: Hold,
    /// Own class, or that of a request that waits for its prefix, if higher.
    pub(super) class: u8,
    /// Tokens that were known when it was admitted: they are fed, the rest continues.
    pub(super) feed_end: u32,
    /// Positions that the plans sent so far write, or that were cached.
    pub(super) num_fed: u32,
    /// Positions that were cached when it was admitted.
    pub(super) num_hit: u32,
    /// Positions that acknowledged plans have written with a row that went well, or that were cached.
    pub(super) num_written: u32,
    /// Tokens of the answer that the plans sent so far sample, or that were there.
    pub(super) num_planned: u32,
    /// Tokens of the answer that are here.
    pub(super) num_sampled: u32,
    /// The last plan that has a row of it: the fence of its blocks.
    pub(super) last_plan: u64,
    /// Positions that it is expected to write.
    pub(super) expected: usize,
    /// It never waits for a block, because all that it may need is kept for it; so it is never stopped either.
    pub(super) reserved: bool,
    /// More tokens than one plan may feed when it was admitted.
    pub(super) is_long: bool,
    /// It gets no more rows and waits for its last plan's result, to wait in the queue again.
    pub(super) stopped: bool,
}

impl Sequence {
    pub(super) fn id(&self) -> RequestId {
        self.task.request.id
    }

    pub(super) fn phase(&self) -> Phase {
        if self.stopped {
            Phase::Drained
        } else if self.num_fed < self.feed_end {
            Phase::Prefill {
                remaining: self.feed_end - self.num_fed,
            }
        } else if self.num_planned < self.task.request.max_new_tokens {
            Phase::Decode
        } else {
            Phase::Drained
        }
    }

    /// Positions that it writes at most.
    pub(super) fn most_positions(&self) -> usize {
        positions_written(self.task.request.max_len())
    }

    pub(super) fn registration(&self) -> Registration {
        let request = &self.task.request;
        let num_known = self.task.num_known();
        let history_ids = match self.occupancy.lane {
            Some(_) => self.task.ids(0, num_known).collect(),
            None => Vec::new(),
        };
        let min_length_ids = match request.sampling.min_new_tokens {
            0 => Vec::new(),
            _ => request.stop_ids.to_vec(),
        };
        let number =
            |count: usize| u32::try_from(count).expect("limits keep requests short of 2^32");
        Registration {
            seat: self.occupancy.seat,
            prompt_len: number(request.prompt_ids.len()),
            max_len: number(request.max_len()),
            penalty_lane: self.occupancy.lane,
            sampling: request.sampling.clone(),
            logprobs: request.logprobs,
            banned_ids: Vec::new(),
            min_length_ids,
            num_generated: match self.occupancy.lane {
                Some(_) => number(self.task.generated.len()),
                None => 0,
            },
            history_ids,
        }
    }
}

/// Entries in the lists of the request's registration.
pub(super) fn list_entries(request: &Request, num_known: usize) -> usize {
    let sampling = &request.sampling;
    let history = if sampling.needs_penalty_lane() {
        num_known
    } else {
        0
    };
    let min_length = match sampling.min_new_tokens {
        0 => 0,
        _ => request.stop_ids.len(),
    };
    history + min_length + sampling.logit_bias.len()
}
/// Everything that runs, by seat, by request, and in order of admission.
#[derive(Debug)]
pub(super) struct Running {
    by_seat: Vec<Option<Sequence>>,
    seats: HashMap<RequestId, u32>,
    order: Vec<u32>,
}

impl Running {
    pub(super) fn new(num_seats: u32) -> Self {
        Self {
            by_seat: (0..num_seats).map(|_| None).collect(),
            seats: HashMap::new(),
            order: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Seats in order of admission.
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    pub(super) fn insert(&mut self, sequence: Sequence) {
        let seat = sequence.occupancy.seat.index;
        self.seats.insert(sequence.id(), seat);
        self.order.push(seat);
        self.by_seat[seat as usize] = Some(sequence);
    }

    /// The sequence on a seat that is in `order`.
    pub(super) fn at(&self, seat: u32) -> &Sequence {
        self.by_seat[seat as usize]
            .as_ref()
            .expect("a seat in the order is occupied")
    }

    /// The sequence on a seat that is in `order`.
    pub(super) fn at_mut(&mut self, seat: u32) -> &mut Sequence {
        self.by_seat[seat as usize]
            .as_mut()
            .expect("a seat in the order is occupied")
    }

    /// The sequence that holds the seat in this generation, if it still runs.
    pub(super) fn holder(&mut self, seat: super::step::Seat) -> Option<&mut Sequence> {
        self.by_seat
            .get_mut(seat.index as usize)?
            .as_mut()
            .filter(|sequence| sequence.occupancy.seat == seat)
    }

    pub(super) fn seat_of(&self, id: RequestId) -> Option<u32> {
        self.seats.get(&id).copied()
    }

    pub(super) fn remove(&mut self, seat: u32) -> Sequence {
        let sequence = self.by_seat[seat as usize]
            .take()
            .expect("only a running sequence ends");
        self.seats.remove(&sequence.id());
        self.order.retain(|&other| other != seat);
        sequence
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.order.iter().map(|&seat| self.at(seat))
    }
}
