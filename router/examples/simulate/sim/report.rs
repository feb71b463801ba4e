//! From records to the figures of one run.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::world::{End, Record};

/// What a request must meet to count as served well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Objectives {
    pub(crate) first_token: Duration,
    /// At most one in a hundred of its gaps between tokens may be longer.
    pub(crate) gap: Duration,
}

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) requests: usize,
    pub(crate) finished: usize,
    pub(crate) refused: usize,
    pub(crate) refusals: BTreeMap<&'static str, usize>,
    pub(crate) failed: usize,
    pub(crate) ttft_p50_s: f64,
    pub(crate) ttft_p99_s: f64,
    pub(crate) itl_p50_ms: f64,
    pub(crate) itl_p99_ms: f64,
    /// Requests that meet the objectives, per second.
    pub(crate) goodput_per_s: f64,
    /// Their share of all requests.
    pub(crate) good_share: f64,
    pub(crate) tokens_per_s: f64,
    /// Of the prompt tokens of requests that ran, found in the cache.
    pub(crate) hit_share: f64,
    pub(crate) preemptions: u32,
    /// From the first arrival to the last end.
    pub(crate) span_s: f64,
}

impl Report {
    pub(crate) fn new(records: &[Record], objectives: Objectives) -> Self {
        let finished = |record: &&Record| matches!(record.end, Some((_, End::Finished)));
        let refused = |record: &&Record| matches!(record.end, Some((_, End::Refused { .. })));
        let started = || records.iter().filter(|record| !record.tokens.is_empty());
        let first = records.iter().map(|record| record.arrival).min();
        let last = records
            .iter()
            .filter_map(|record| Some(record.end.as_ref()?.0));
        let span = last.max().unwrap_or_default() - first.unwrap_or_default();
        let span_s = span.as_secs_f64().max(1e-9);
        let good = records.iter().filter(finished);
        let good = good.filter(|record| record.meets(objectives)).count();
        let tokens: usize = records.iter().map(|record| record.tokens.len()).sum();
        let prompt_tokens: u64 = started()
            .map(|record| u64::from(record.prompt_tokens))
            .sum();
        let cached_tokens: u64 = started()
            .map(|record| u64::from(record.cached_tokens))
            .sum();
        let mut ttft: Vec<Duration> = started()
            .map(|record| record.tokens[0] - record.arrival)
            .collect();
        let mut gaps: Vec<Duration> = records.iter().flat_map(Record::gaps).collect();
        Self {
            requests: records.len(),
            finished: records.iter().filter(finished).count(),
            refused: records.iter().filter(refused).count(),
            refusals: refusals(records),
            failed: records
                .iter()
                .filter(|record| !finished(record) && !refused(record))
                .count(),
            ttft_p50_s: quantile(&mut ttft, 0.5).as_secs_f64(),
            ttft_p99_s: quantile(&mut ttft, 0.99).as_secs_f64(),
            itl_p50_ms: quantile(&mut gaps, 0.5).as_secs_f64() * 1e3,
            itl_p99_ms: quantile(&mut gaps, 0.99).as_secs_f64() * 1e3,
            goodput_per_s: good as f64 / span_s,
            good_share: good as f64 / records.len().max(1) as f64,
            tokens_per_s: tokens as f64 / span_s,
            hit_share: cached_tokens as f64 / prompt_tokens.max(1) as f64,
            preemptions: records.iter().map(|record| record.preemptions).sum(),
            span_s,
        }
    }

    pub(crate) const HEAD: &str = "| | finished | refused | TTFT p50, s | p99 | ITL p50, ms | p99 | good/s | good | tokens/s | hits | preempted |\n|---|---|---|---|---|---|---|---|---|---|---|---|";

    /// A row of a Markdown table.
    pub(crate) fn row(&self, name: &str) -> String {
        format!(
            "| {name} | {} | {} | {:.3} | {:.2} | {:.1} | {:.0} | {:.2} | {:.1} % | {:.0} | {:.1} % | {} |",
            self.finished,
            self.refused,
            self.ttft_p50_s,
            self.ttft_p99_s,
            self.itl_p50_ms,
            self.itl_p99_ms,
            self.goodput_per_s,
            self.good_share * 100.0,
            self.tokens_per_s,
            self.hit_share * 100.0,
            self.preemptions,
        )
    }
}

impl Record {
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Duration> {
        self.tokens.windows(2).map(|pair| pair[1] - pair[0])
    }

    fn meets(&self, objectives: Objectives) -> bool {
        let late = self.gaps().filter(|&gap| gap > objectives.gap).count();
        let in_time = |first: &Duration| *first - self.arrival <= objectives.first_token;
        self.tokens.first().is_some_and(in_time) && late * 100 <= self.tokens.len()
    }
}

fn refusals(records: &[Record]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for record in records {
        if let Some((_, End::Refused { reason, .. })) = record.end {
            *counts.entry(reason).or_default() += 1;
        }
    }
    counts
}

/// The value that this share of all are no greater than.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a list"
)]
pub(crate) fn quantile(values: &mut [Duration], share: f64) -> Duration {
    if values.is_empty() {
        return Duration::ZERO;
    }
    let place = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1;
    *values.select_nth_unstable(place).1
}
