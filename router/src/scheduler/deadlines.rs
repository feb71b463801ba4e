//! When requests run out of time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::task::Task;
use crate::request::RequestId;

/// Times in order; every request has at most two.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    times: BTreeSet<(Duration, RequestId)>,
}

impl Deadlines {
    pub(super) fn add(&mut self, task: &Task) {
        let id = task.request.id;
        self.times.extend(of(task).map(|time| (time, id)));
    }

    pub(super) fn remove(&mut self, task: &Task) {
        for time in of(task) {
            self.times.remove(&(time, task.request.id));
        }
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.times.first().map(|&(time, _)| time)
    }

    /// Takes a request out one of whose times has come.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<RequestId> {
        let due = self.times.pop_first()?;
        if due.0 > now {
            self.times.insert(due);
            return None;
        }
        Some(due.1)
    }
}

/// Also the one for the queue, whether or not the request has left it.
fn of(task: &Task) -> impl Iterator<Item = Duration> {
    let scheduling = &task.request.scheduling;
    let limits = [scheduling.queue_timeout, scheduling.total_timeout];
    let submitted = task.submitted;
    limits
        .into_iter()
        .flatten()
        .map(move |limit| submitted + limit)
}
