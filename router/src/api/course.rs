//! What the scheduler did with a request, as JSON answers say it to those who ask.

use serde::Serialize;

use crate::event::{Course, WaitReason};

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct SchedulingDetails {
    cached_tokens: u32,
    waited: Option<&'static str>,
    preemptions: u32,
}

impl From<Course> for SchedulingDetails {
    fn from(course: Course) -> Self {
        let Course {
            cached_tokens,
            waited,
            preemptions,
        } = course;
        Self {
            cached_tokens,
            waited: waited.map(WaitReason::name),
            preemptions,
        }
    }
}
