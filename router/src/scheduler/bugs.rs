//! Faults that the tests plant, to see that they are noticed. They exist in test builds only, and one at a time is
//! chosen at run time for the current thread.

use std::cell::Cell;

/// What to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// Blocks are free when their request ends, not when its last plan is acknowledged.
    FreeAtFinish,
    /// A request that hits a prefix does not pin it.
    MissedReference,
    /// Eviction takes the oldest leaf, pinned or not.
    EvictsPinned,
    /// A request that is cancelled before its first token keeps its blocks.
    LeakOnCancel,
    /// Tokens from before a preemption count once more afterwards.
    CountsTwice,
    /// At the end of a request the last token, which was never computed, counts as computed.
    LastTokenCached,
    /// A prompt that is cached in full is not cut to leave a token to feed: its last block is written again.
    FullHitWrites,
    /// A preempted request's last token is delivered again when it resumes.
    DeliversTwice,
    /// Blocks that a failed row should have written stay in the cache.
    KeepsProvisional,
    /// Requests that hold a reservation may outgrow the pool together.
    ReservesTooMuch,
}

impl Bug {
    pub(super) const ALL: [Self; 10] = [
        Self::FreeAtFinish,
        Self::MissedReference,
        Self::EvictsPinned,
        Self::LeakOnCancel,
        Self::CountsTwice,
        Self::LastTokenCached,
        Self::FullHitWrites,
        Self::DeliversTwice,
        Self::KeepsProvisional,
        Self::ReservesTooMuch,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug for the rest of the thread, or takes it out.
pub(super) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

pub(super) fn planted() -> Option<Bug> {
    PLANTED.get()
}

/// Whether this is the planted bug.
pub(super) fn is(bug: Bug) -> bool {
    planted() == Some(bug)
}
