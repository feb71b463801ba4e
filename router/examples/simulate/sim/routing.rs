//! Which replica a request goes to. The router knows what it has sent where and how much of it is unfinished, nothing of
//! the replicas' state: the same as a balancer in front of them.

use std::collections::{BTreeMap, HashMap};

use super::trace::{Job, mix};

/// Prompts are compared in pieces of so many tokens.
const PIECE: usize = 64;
/// A replica with a cached prefix is passed over when it has more than this times the mean of unfinished requests, ...
const BOUND: f64 = 1.25;
/// ... and so many more.
const SLACK: f64 = 4.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    Random,
    LeastLoaded,
    Prefix,
}

/// What was sent to one replica lately.
#[derive(Debug, Default)]
struct Sent {
    unfinished: usize,
    stamps: HashMap<u64, u64>,
    by_stamp: BTreeMap<u64, u64>,
    last_stamp: u64,
}

#[derive(Debug)]
pub(crate) struct Router {
    routing: Routing,
    sent: Vec<Sent>,
    /// Pieces remembered for each replica: what its cache holds.
    capacity: usize,
    random: u64,
}

impl Router {
    pub(crate) fn new(routing: Routing, num_replicas: usize, kv_tokens: usize) -> Self {
        Self {
            routing,
            sent: (0..num_replicas).map(|_| Sent::default()).collect(),
            capacity: kv_tokens / PIECE,
            random: 1,
        }
    }

    pub(crate) fn single() -> Self {
        Self::new(Routing::LeastLoaded, 1, 0)
    }

    pub(crate) fn place(&mut self, job: &Job) -> usize {
        self.random = mix(self.random);
        let num_replicas = self.sent.len();
        let random = usize::try_from(self.random >> 33).expect("it has 31 bits");
        let place = match self.routing {
            Routing::Random => random % num_replicas,
            Routing::LeastLoaded => self.least_loaded(random),
            Routing::Prefix => {
                let pieces = pieces(&job.prompt);
                let place = self
                    .longest(&pieces)
                    .unwrap_or_else(|| self.least_loaded(random));
                self.sent[place].remember(&pieces, self.capacity);
                place
            }
        };
        self.sent[place].unfinished += 1;
        place
    }

    pub(crate) fn ended(&mut self, place: usize) {
        self.sent[place].unfinished -= 1;
    }

    /// Of several, any.
    fn least_loaded(&self, random: usize) -> usize {
        let num_replicas = self.sent.len();
        let places = (0..num_replicas).map(|place| (place + random) % num_replicas);
        let least = places.min_by_key(|&place| self.sent[place].unfinished);
        least.expect("there is a replica")
    }

    /// The replica with the longest prefix, of those that are not loaded too much.
    fn longest(&self, pieces: &[u64]) -> Option<usize> {
        let total: usize = self.sent.iter().map(|sent| sent.unfinished).sum();
        let bound = total as f64 / self.sent.len() as f64 * BOUND + SLACK;
        let known = |place: usize| {
            let sent = &self.sent[place];
            let cached = |piece: &&u64| sent.stamps.contains_key(*piece);
            let count = pieces.iter().take_while(cached).count();
            (count, std::cmp::Reverse(sent.unfinished), place)
        };
        let free =
            (0..self.sent.len()).filter(|&place| (self.sent[place].unfinished as f64) < bound);
        let (count, _, place) = free.map(known).max()?;
        (count > 0).then_some(place)
    }
}

impl Sent {
    fn remember(&mut self, pieces: &[u64], capacity: usize) {
        // In reverse, so that the ends of prompts are forgotten first.
        for &piece in pieces.iter().rev() {
            self.last_stamp += 1;
            if let Some(before) = self.stamps.insert(piece, self.last_stamp) {
                self.by_stamp.remove(&before);
            }
            self.by_stamp.insert(self.last_stamp, piece);
        }
        while self.stamps.len() > capacity {
            let (_, piece) = self.by_stamp.pop_first().expect("every piece has a stamp");
            self.stamps.remove(&piece);
        }
    }
}

fn pieces(prompt: &[u32]) -> Vec<u64> {
    let mut hash = 0;
    let chunks = prompt.chunks_exact(PIECE);
    let hashes = chunks.map(|piece| {
        hash = piece
            .iter()
            .fold(hash, |hash, &id| mix(hash ^ u64::from(id)));
        hash
    });
    hashes.collect()
}
