//! A running request, and the table of all that run.

use std::collections::HashMap;
use std::time::Duration;

use super::blocks::Lease;
use super::seats::Occupancy;
use super::step::Registration;
use crate::request::{Request, RequestId};

/// What a sequence's next row would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// This many prompt tokens are not in a plan yet.
    Prefill { remaining: u32 },
    /// Continues from its last sampled token.
    Decode,
    /// Every token it may have is in a plan; it waits for results.
    Drained,
}

/// One running request.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Request,
    pub(super) occupancy: Occupancy,
    /// Per KV group.
    pub(super) leases: Vec<Lease>,
    /// Positions that the plans sent so far write.
    pub(super) num_fed: u32,
    /// Tokens that the plans sent so far sample.
    pub(super) num_planned: u32,
    /// Tokens received.
    pub(super) num_sampled: u32,
    /// The last plan that has a row of it: the fence of its blocks.
    pub(super) last_plan: u64,
    pub(super) submitted: Duration,
    pub(super) started: Duration,
}

impl Sequence {
    pub(super) fn prompt_len(&self) -> u32 {
        u32::try_from(self.request.prompt_ids.len()).expect("limits keep prompts short of 2^32")
    }

    pub(super) fn phase(&self) -> Phase {
        let prompt_len = self.prompt_len();
        if self.num_fed < prompt_len {
            Phase::Prefill {
                remaining: prompt_len - self.num_fed,
            }
        } else if self.num_planned < self.request.max_new_tokens {
            Phase::Decode
        } else {
            Phase::Drained
        }
    }

    pub(super) fn registration(&self) -> Registration {
        let request = &self.request;
        let history_ids = match self.occupancy.lane {
            Some(_) => request.prompt_ids.to_vec(),
            None => Vec::new(),
        };
        let min_length_ids = match request.sampling.min_new_tokens {
            0 => Vec::new(),
            _ => request.stop_ids.to_vec(),
        };
        Registration {
            seat: self.occupancy.seat,
            prompt_len: self.prompt_len(),
            max_len: u32::try_from(request.max_len()).expect("limits keep requests short of 2^32"),
            penalty_lane: self.occupancy.lane,
            sampling: request.sampling.clone(),
            logprobs: request.logprobs,
            banned_ids: Vec::new(),
            min_length_ids,
            history_ids,
            num_generated: 0,
        }
    }
}

/// Entries in the lists of the request's registration.
pub(super) fn list_entries(request: &Request) -> usize {
    let sampling = &request.sampling;
    let history = if sampling.needs_penalty_lane() {
        request.prompt_ids.len()
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
        self.seats.insert(sequence.request.id, seat);
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
        self.seats.remove(&sequence.request.id);
        self.order.retain(|&other| other != seat);
        sequence
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.order.iter().map(|&seat| self.at(seat))
    }
}
