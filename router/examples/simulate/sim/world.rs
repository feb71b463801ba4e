//! The clock: requests arrive as the trace says, go to the replica that the routing names, and what comes of them is
//! written down.

use std::sync::Arc;
use std::time::Duration;

use super::replica::Replica;
use super::routing::Router;
use super::server::{Event, Events, Server};
use super::trace::Entry;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Refused {
        reason: &'static str,
        retry_after_s: u32,
    },
    Failed,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) arrival: Duration,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) tokens: Vec<Duration>,
    pub(crate) preemptions: u32,
    pub(crate) end: Option<(Duration, End)>,
}

/// Replicas, and the records of all requests in the order of the trace.
pub(crate) struct World<S> {
    pub(crate) replicas: Vec<Replica<S>>,
    pub(crate) records: Vec<Record>,
    pub(crate) now: Duration,
    router: Router,
    /// By request, while it is unfinished.
    placed: Vec<usize>,
}

impl<S: Server> World<S> {
    pub(crate) fn new(replicas: Vec<Replica<S>>, router: Router) -> Self {
        Self {
            replicas,
            records: Vec::new(),
            now: Duration::ZERO,
            router,
            placed: Vec::new(),
        }
    }

    /// Takes every request of the trace, in order of arrival, and goes on until nothing is left to do.
    pub(crate) fn run(&mut self, trace: &[Entry]) {
        for entry in trace {
            self.arrive(entry);
        }
        self.run_until(Duration::MAX);
    }

    pub(crate) fn arrive(&mut self, entry: &Entry) {
        let arrival = Duration::from_secs_f64(entry.arrival_s);
        self.run_until(arrival);
        self.now = arrival;
        let job = entry.job(self.records.len() as u64);
        self.records.push(Record {
            arrival,
            prompt_tokens: job.prompt_len(),
            cached_tokens: 0,
            tokens: Vec::new(),
            preemptions: 0,
            end: None,
        });
        let place = self.router.place(&job);
        self.placed.push(place);
        let mut events = Events::new();
        self.replicas[place].submit(Arc::new(job), arrival, &mut events);
        self.note(events);
    }

    /// Everything that happens before `limit`.
    pub(crate) fn run_until(&mut self, limit: Duration) {
        loop {
            let next = self.replicas.iter().enumerate();
            let next = next.filter_map(|(place, replica)| Some((replica.next_event()?, place)));
            let Some((at, place)) = next.min().filter(|&(at, _)| at < limit) else {
                return;
            };
            self.now = self.now.max(at);
            let mut events = Events::new();
            self.replicas[place].advance(self.now, &mut events);
            self.note(events);
        }
    }

    fn note(&mut self, events: Events) {
        for (id, event) in events {
            let index = usize::try_from(id).expect("ids are places in the trace");
            let record = &mut self.records[index];
            let end = match event {
                Event::Started { cached_tokens } => {
                    record.cached_tokens = cached_tokens;
                    continue;
                }
                Event::Token => {
                    record.tokens.push(self.now);
                    continue;
                }
                Event::Preempted => {
                    record.preemptions += 1;
                    continue;
                }
                Event::Finished => End::Finished,
                Event::Refused {
                    reason,
                    retry_after_s,
                } => End::Refused {
                    reason,
                    retry_after_s,
                },
                Event::Failed => End::Failed,
            };
            record.end = Some((self.now, end));
            self.router.ended(self.placed[index]);
        }
    }
}
