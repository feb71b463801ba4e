//! What the clock needs of a server under some policy.

use std::sync::Arc;
use std::time::Duration;

use super::machine::Work;
use super::trace::Job;

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// With its first token.
    Started {
        cached_tokens: u32,
    },
    Token,
    Preempted,
    Finished,
    /// Turned away; another try may be taken after so many seconds.
    Refused {
        reason: &'static str,
        retry_after_s: u32,
    },
    Failed,
}

/// Events with the requests' ids.
pub(crate) type Events = Vec<(u64, Event)>;

/// One engine with its scheduler.
pub(crate) trait Server {
    fn submit(&mut self, job: Arc<Job>, now: Duration, out: &mut Events);

    /// The next step, if there is anything to do.
    fn plan(&mut self, now: Duration, out: &mut Events) -> Option<Work>;

    /// The oldest step that was planned is over; it took so long.
    fn apply(&mut self, took: Duration, now: Duration, out: &mut Events);

    /// True: a step is planned shortly before the one before ends. False: when it has ended, at no cost.
    fn plans_ahead(&self) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Duration> {
        None
    }

    fn expire(&mut self, _now: Duration, _out: &mut Events) {}
}
