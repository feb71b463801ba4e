//! Requests that wait for their first row, first come first served.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::request::{Request, RequestId};

/// A waiting request.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) request: Request,
    pub(super) submitted: Duration,
}

/// Waiting requests in order of arrival. Leaving costs O(log n) from any place: a client may go at any time.
#[derive(Debug, Default)]
pub(super) struct Queue {
    by_arrival: BTreeMap<u64, Waiting>,
    arrivals: HashMap<RequestId, u64>,
    next_arrival: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.by_arrival.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_arrival.is_empty()
    }

    pub(super) fn push(&mut self, request: Request, submitted: Duration) {
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        let before = self.arrivals.insert(request.id, arrival);
        debug_assert!(before.is_none(), "request ids are never reused");
        self.by_arrival
            .insert(arrival, Waiting { request, submitted });
    }

    pub(super) fn front(&self) -> Option<&Waiting> {
        self.by_arrival
            .first_key_value()
            .map(|(_, waiting)| waiting)
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let (_, waiting) = self.by_arrival.pop_first()?;
        self.arrivals.remove(&waiting.request.id);
        Some(waiting)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.by_arrival.values()
    }

    /// True if the request was waiting.
    pub(super) fn remove(&mut self, id: RequestId) -> bool {
        let Some(arrival) = self.arrivals.remove(&id) else {
            return false;
        };
        self.by_arrival.remove(&arrival).is_some()
    }
}
