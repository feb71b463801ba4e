//! The metric registry: every family by name, with its handle, registered before the first request. Labels come from
//! fixed sets only.

mod help;

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::driver::{Samples, SharedStats, StepSample};
use crate::event::{Refusal, WaitReason};

/// Why a request failed, as the label `err` of `tgi_request_failure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureLabel {
    Overloaded,
    Validation,
    Template,
    Incomplete,
    Generation,
    /// The time that the client gave was over.
    Deadline,
    /// The client went away.
    Dropped,
}

impl FailureLabel {
    const ALL: [Self; 7] = [
        Self::Overloaded,
        Self::Validation,
        Self::Template,
        Self::Incomplete,
        Self::Generation,
        Self::Deadline,
        Self::Dropped,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::Validation => "validation",
            Self::Template => "template",
            Self::Incomplete => "incomplete",
            Self::Generation => "generation",
            Self::Deadline => "deadline",
            Self::Dropped => "dropped",
        }
    }
}

/// Prefill or decode, the label `method`.
#[derive(Clone, Debug)]
pub struct ByMethod<T = Counter> {
    pub prefill: T,
    pub decode: T,
}

impl<T> ByMethod<T> {
    fn of(&self, feeds: bool) -> &T {
        if feeds { &self.prefill } else { &self.decode }
    }
}

/// All handles.
#[derive(Debug)]
pub struct Metrics {
    exporter: PrometheusHandle,
    pub request_count: Counter,
    pub request_success: Counter,
    request_failure: [Counter; FailureLabel::ALL.len()],
    pub request_duration: Histogram,
    pub validation_duration: Histogram,
    pub queue_duration: Histogram,
    pub inference_duration: Histogram,
    pub mean_time_per_token: Histogram,
    pub generated_tokens: Histogram,
    pub input_length: Histogram,
    pub max_new_tokens: Histogram,
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub queue_size: Gauge,
    pub batch_current_size: Gauge,
    pub batch_current_max_tokens: Gauge,
    pub batch_next_size: Histogram,
    pub batch_inference_count: ByMethod,
    pub batch_inference_success: ByMethod,
    pub batch_inference_failure: ByMethod,
    pub batch_inference_duration: ByMethod<Histogram>,
    pub batch_forward_duration: ByMethod<Histogram>,
    pub batch_decode_duration: ByMethod<Histogram>,
    pub batch_concat: Counter,
    pub batch_max_total_tokens: Gauge,
    pub kv_blocks_total: Gauge,
    pub kv_blocks_used: Gauge,
    pub kv_blocks_cached: Gauge,
    pub running_requests: Gauge,
    pub steps: Counter,
    pub step_us: ByMethod,
    pub forward_us: ByMethod,
    pub decode_steps_followed: Counter,
    pub steps_overlapped: Counter,
    pub wasted_rows: Counter,
    pub kernels_compiled: Counter,
    pub engines_ready: Counter,
    preemptions: Counter,
    prefill_tokens: Counter,
    prefix_cached_tokens: Counter,
    waits: [Counter; WaitReason::ALL.len()],
    refusals: [Counter; Refusal::ALL.len()],
    overdue: Counter,
}

impl Metrics {
    /// Bucket edges of token counts follow the limits.
    pub fn new(max_input_tokens: usize, max_total_tokens: usize) -> Result<Self, BuildError> {
        let recorder = builder(max_input_tokens, max_total_tokens)?.build_recorder();
        let exporter = recorder.handle();
        Ok(with_local_recorder(&recorder, || {
            help::describe();
            Self::register(exporter)
        }))
    }

    fn register(exporter: PrometheusHandle) -> Self {
        let by_method = |name: &'static str| ByMethod {
            prefill: counter!(name, "method" => "prefill"),
            decode: counter!(name, "method" => "decode"),
        };
        let durations_by_method = |name: &'static str| ByMethod {
            prefill: histogram!(name, "method" => "prefill"),
            decode: histogram!(name, "method" => "decode"),
        };
        // TGI's other reasons; a request joins here as soon as there is room, and its prompt comes in chunks.
        for reason in ["backpressure", "wait_exceeded"] {
            counter!("tgi_batch_concat", "reason" => reason).absolute(0);
        }
        Self {
            exporter,
            request_count: counter!("tgi_request_count"),
            request_success: counter!("tgi_request_success"),
            request_failure: FailureLabel::ALL
                .map(|label| counter!("tgi_request_failure", "err" => label.name())),
            request_duration: histogram!("tgi_request_duration"),
            validation_duration: histogram!("tgi_request_validation_duration"),
            queue_duration: histogram!("tgi_request_queue_duration"),
            inference_duration: histogram!("tgi_request_inference_duration"),
            mean_time_per_token: histogram!("tgi_request_mean_time_per_token_duration"),
            generated_tokens: histogram!("tgi_request_generated_tokens"),
            input_length: histogram!("tgi_request_input_length"),
            max_new_tokens: histogram!("tgi_request_max_new_tokens"),
            time_to_first_token: histogram!("penstock_time_to_first_token_duration"),
            inter_token_latency: histogram!("penstock_inter_token_duration"),
            queue_size: gauge!("tgi_queue_size"),
            batch_current_size: gauge!("tgi_batch_current_size"),
            batch_current_max_tokens: gauge!("tgi_batch_current_max_tokens"),
            batch_next_size: histogram!("tgi_batch_next_size"),
            batch_inference_count: by_method("tgi_batch_inference_count"),
            batch_inference_success: by_method("tgi_batch_inference_success"),
            batch_inference_failure: by_method("tgi_batch_inference_failure"),
            batch_inference_duration: durations_by_method("tgi_batch_inference_duration"),
            batch_forward_duration: durations_by_method("tgi_batch_forward_duration"),
            batch_decode_duration: durations_by_method("tgi_batch_decode_duration"),
            batch_concat: counter!("tgi_batch_concat", "reason" => "chunking"),
            batch_max_total_tokens: gauge!("tgi_batch_max_total_tokens"),
            kv_blocks_total: gauge!("penstock_kv_blocks_total"),
            kv_blocks_used: gauge!("penstock_kv_blocks_used"),
            kv_blocks_cached: gauge!("penstock_kv_blocks_cached"),
            running_requests: gauge!("penstock_running_requests"),
            steps: counter!("penstock_steps_total"),
            step_us: by_method("penstock_step_microseconds_total"),
            forward_us: by_method("penstock_forward_microseconds_total"),
            decode_steps_followed: counter!("penstock_decode_steps_followed_total"),
            steps_overlapped: counter!("penstock_steps_overlapped_total"),
            wasted_rows: counter!("penstock_wasted_rows_total"),
            kernels_compiled: counter!("penstock_kernels_compiled_total"),
            engines_ready: counter!("penstock_engines_ready_total"),
            preemptions: counter!("penstock_preemptions_total"),
            prefill_tokens: counter!("penstock_prefill_tokens_total"),
            prefix_cached_tokens: counter!("penstock_prefix_cached_tokens_total"),
            waits: WaitReason::ALL
                .map(|why| counter!("penstock_request_waits_total", "reason" => why.name())),
            refusals: Refusal::ALL
                .map(|why| counter!("penstock_request_refusals_total", "reason" => why.name())),
            overdue: counter!("penstock_requests_overdue_total"),
        }
    }

    pub fn failed(&self, label: FailureLabel) {
        self.request_failure[label as usize].increment(1);
    }

    /// Takes what the driver counted and measured.
    fn take(&self, shared: &SharedStats) {
        let stats = shared.get();
        let counters = &stats.scheduler;
        let gauges = [
            (&self.queue_size, counters.queued),
            (&self.batch_current_size, counters.running),
            (&self.batch_current_max_tokens, counters.running_max_tokens),
            (&self.batch_max_total_tokens, counters.tokens_total),
            (&self.running_requests, counters.running),
            (&self.kv_blocks_total, counters.blocks_total),
            (&self.kv_blocks_used, counters.blocks_used),
            (&self.kv_blocks_cached, counters.blocks_cached),
        ];
        for (gauge, value) in gauges {
            gauge.set(value as f64);
        }
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (prefill, decode) = (&stats.prefill, &stats.decode);
        let totals = [
            (&self.step_us.prefill, microseconds(prefill.step_time)),
            (&self.step_us.decode, microseconds(decode.step_time)),
            (&self.forward_us.prefill, microseconds(prefill.forward_time)),
            (&self.forward_us.decode, microseconds(decode.forward_time)),
            (&self.batch_inference_count.prefill, counters.prefill_steps),
            (&self.batch_inference_count.decode, counters.decode_steps),
            (&self.batch_inference_success.prefill, stats.prefill.steps),
            (&self.batch_inference_success.decode, stats.decode.steps),
            (&self.batch_inference_failure.prefill, prefill.lost),
            (&self.batch_inference_failure.decode, decode.lost),
            (&self.batch_concat, counters.joins),
            (&self.steps, stats.prefill.steps + stats.decode.steps),
            (
                &self.decode_steps_followed,
                stats.decode_steps_with_successor,
            ),
            (
                &self.steps_overlapped,
                stats.decode_steps_with_successor_waiting,
            ),
            (&self.wasted_rows, counters.wasted_rows),
            (&self.kernels_compiled, stats.kernels_compiled),
            (&self.engines_ready, stats.engines_ready),
            (&self.preemptions, counters.preemptions),
            (&self.prefill_tokens, counters.prompt_tokens),
            (&self.prefix_cached_tokens, counters.cached_tokens),
            (&self.overdue, counters.overdue),
        ];
        let waits = self.waits.iter().zip(counters.waits);
        let refusals = self.refusals.iter().zip(counters.refusals);
        for (counter, value) in totals.into_iter().chain(waits).chain(refusals) {
            counter.absolute(value);
        }
        let Samples { steps, batch_sizes } = shared.take_samples();
        for size in batch_sizes {
            self.batch_next_size.record(size);
        }
        for step in steps {
            let StepSample {
                feeds,
                inference,
                forward,
                decode,
            } = step;
            self.batch_inference_duration.of(feeds).record(inference);
            self.batch_forward_duration.of(feeds).record(forward);
            self.batch_decode_duration.of(feeds).record(decode);
        }
    }

    /// The Prometheus text, as of now.
    pub fn render(&self, stats: &SharedStats) -> String {
        self.take(stats);
        self.exporter.render()
    }

    /// Moves samples from the driver into the histograms' buffers, and from there into their buckets; without it they
    /// gather while nobody scrapes.
    pub fn upkeep(&self, stats: &SharedStats) {
        self.take(stats);
        self.exporter.run_upkeep();
    }
}

fn builder(
    max_input_tokens: usize,
    max_total_tokens: usize,
) -> Result<PrometheusBuilder, BuildError> {
    let durations: Vec<f64> = (1..=35).map(|k| 0.0001 * 1.5_f64.powi(k)).collect();
    let batch_sizes: Vec<f64> = (1..=1024).map(f64::from).collect();
    let linear = |max: usize| -> Vec<f64> {
        (1..=100)
            .map(|step| max as f64 / 100.0 * f64::from(step))
            .collect()
    };
    let (input, total) = (linear(max_input_tokens), linear(max_total_tokens));
    let full = |name: &str| Matcher::Full(name.to_owned());
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("duration".to_owned()), &durations)?
        .set_buckets_for_metric(full("tgi_request_input_length"), &input)?
        .set_buckets_for_metric(full("tgi_request_generated_tokens"), &total)?
        .set_buckets_for_metric(full("tgi_request_max_new_tokens"), &total)?
        .set_buckets_for_metric(full("tgi_batch_next_size"), &batch_sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_there_before_the_first_request() {
        let metrics = Metrics::new(1000, 2000).unwrap();
        let stats = SharedStats::default();
        let text = metrics.render(&stats);
        for line in [
            "tgi_request_count 0",
            "tgi_request_failure{err=\"dropped\"} 0",
            "tgi_batch_inference_count{method=\"decode\"} 0",
            "tgi_request_duration_count 0",
            "tgi_request_duration_bucket{le=\"0.00015000000000000001\"} 0",
            "tgi_request_input_length_bucket{le=\"10\"} 0",
            "tgi_batch_next_size_bucket{le=\"1024\"} 0",
            "tgi_batch_inference_failure{method=\"prefill\"} 0",
            "tgi_batch_inference_duration_count{method=\"prefill\"} 0",
            "tgi_batch_forward_duration_bucket{method=\"decode\",le=\"0.00015000000000000001\"} 0",
            "tgi_batch_decode_duration_count{method=\"decode\"} 0",
            "tgi_batch_concat{reason=\"backpressure\"} 0",
            "tgi_batch_concat{reason=\"chunking\"} 0",
            "tgi_batch_concat{reason=\"wait_exceeded\"} 0",
            "tgi_batch_max_total_tokens 0",
            "penstock_inter_token_duration_count 0",
            "penstock_kv_blocks_used 0",
            "penstock_steps_overlapped_total 0",
            "penstock_preemptions_total 0",
            "penstock_prefill_tokens_total 0",
            "penstock_prefix_cached_tokens_total 0",
            "penstock_request_waits_total{reason=\"shared_prefix\"} 0",
            "penstock_request_refusals_total{reason=\"predicted_wait\"} 0",
            "penstock_requests_overdue_total 0",
        ] {
            assert!(
                text.lines().any(|got| got == line),
                "{line} is missing in\n{text}"
            );
        }
        // Nobody should have to read the source to know what a number is.
        for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = family.split(' ').next().unwrap();
            let help = format!("# HELP {name} ");
            assert!(text.contains(&help), "no help for {name}");
        }
        metrics.failed(FailureLabel::Dropped);
        assert!(
            metrics
                .render(&stats)
                .contains("tgi_request_failure{err=\"dropped\"} 1")
        );
    }

    #[test]
    fn counters_of_reasons_keep_their_order() {
        let metrics = Metrics::new(1000, 2000).unwrap();
        let stats = SharedStats::default();
        let mut driver = crate::driver::DriverStats::default();
        driver.scheduler = crate::scheduler::Counters {
            cached_tokens: 1,
            preemptions: 2,
            waits: [3, 4, 5, 6, 7, 8],
            refusals: [9, 10, 11],
            overdue: 12,
            blocks_cached: 13,
            ..driver.scheduler
        };
        stats.set(driver, &mut Samples::default());
        let text = metrics.render(&stats);
        for line in [
            "penstock_prefix_cached_tokens_total 1",
            "penstock_preemptions_total 2",
            "penstock_request_waits_total{reason=\"turn\"} 3",
            "penstock_request_waits_total{reason=\"step_full\"} 4",
            "penstock_request_waits_total{reason=\"seats\"} 5",
            "penstock_request_waits_total{reason=\"blocks\"} 6",
            "penstock_request_waits_total{reason=\"shared_prefix\"} 7",
            "penstock_request_waits_total{reason=\"long_prompts\"} 8",
            "penstock_request_refusals_total{reason=\"queue_full\"} 9",
            "penstock_request_refusals_total{reason=\"predicted_wait\"} 10",
            "penstock_request_refusals_total{reason=\"queue_timeout\"} 11",
            "penstock_requests_overdue_total 12",
            "penstock_kv_blocks_cached 13",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is missing");
        }
    }

    #[test]
    fn upkeep_takes_what_the_driver_gathered() {
        let metrics = Metrics::new(1000, 2000).unwrap();
        let stats = SharedStats::default();
        let step = StepSample {
            feeds: true,
            inference: Duration::from_millis(3),
            forward: Duration::from_millis(2),
            decode: Duration::from_millis(1),
        };
        let mut samples = Samples {
            steps: vec![step; 100_000],
            batch_sizes: vec![37],
        };
        stats.set(crate::driver::DriverStats::default(), &mut samples);
        assert!(samples.steps.is_empty());
        metrics.upkeep(&stats);
        assert!(stats.take_samples().steps.is_empty());
        let text = metrics.render(&stats);
        for line in [
            "tgi_batch_next_size_bucket{le=\"36\"} 0",
            "tgi_batch_next_size_bucket{le=\"37\"} 1",
            // The rest was dropped: nobody had looked for long.
            "tgi_batch_forward_duration_count{method=\"prefill\"} 65536",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} is missing");
        }
    }
}
