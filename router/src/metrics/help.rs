//! What each metric family is, for whoever reads `/metrics`.

use metrics::{describe_counter, describe_gauge, describe_histogram};

pub(super) fn describe() {
    let counters = [
        ("tgi_request_count", "Requests received"),
        ("tgi_request_success", "Requests answered to their end"),
        ("tgi_request_failure", "Requests that failed, by cause"),
        ("tgi_batch_inference_count", "Steps sent to the shards"),
        (
            "tgi_batch_inference_success",
            "Steps answered by the shards",
        ),
        ("tgi_batch_inference_failure", "Steps lost with the shards"),
        (
            "tgi_batch_concat",
            "Batches that joined running requests, by reason",
        ),
        ("penstock_steps_total", "Steps answered by the shards"),
        (
            "penstock_step_microseconds_total",
            "Time of the steps on the device",
        ),
        (
            "penstock_forward_microseconds_total",
            "Of that, in the model's forward pass",
        ),
        (
            "penstock_steps_overlapped_total",
            "Steps that arrived before the one before them had ended",
        ),
        (
            "penstock_decode_steps_followed_total",
            "Decode steps after which there was more to do",
        ),
        (
            "penstock_wasted_rows_total",
            "Rows computed for requests that had ended meanwhile",
        ),
        (
            "penstock_kernels_compiled_total",
            "Kernels that shards compiled, or read from the compiler's cache, while serving: steps that waited",
        ),
        (
            "penstock_engines_ready_total",
            "Times that the shards became ready",
        ),
        (
            "penstock_preemptions_total",
            "Times that a request was stopped to make room for others",
        ),
        (
            "penstock_prefill_tokens_total",
            "Tokens computed as input: of prompts, and of answers that were stopped",
        ),
        (
            "penstock_prefix_cached_tokens_total",
            "Tokens that were found in the KV cache: of prompts, and again of requests that were stopped",
        ),
        (
            "penstock_request_waits_total",
            "Requests that had to wait for their first step, or in vain, by the last reason",
        ),
        (
            "penstock_request_refusals_total",
            "Requests that the scheduler turned away, by reason",
        ),
        (
            "penstock_requests_overdue_total",
            "Requests whose deadline passed while they waited or ran",
        ),
    ];
    for (name, help) in counters {
        describe_counter!(name, help);
    }
    let gauges = [
        ("tgi_queue_size", "Requests that wait for their first step"),
        ("tgi_batch_current_size", "Requests that run"),
        (
            "tgi_batch_current_max_tokens",
            "Tokens that the running requests may still reach",
        ),
        (
            "tgi_batch_max_total_tokens",
            "Tokens that the KV cache holds",
        ),
        ("penstock_kv_blocks_total", "KV-cache blocks"),
        (
            "penstock_kv_blocks_used",
            "KV-cache blocks referenced by live requests",
        ),
        (
            "penstock_kv_blocks_cached",
            "KV-cache blocks kept for later prompts",
        ),
        ("penstock_running_requests", "Requests that run"),
    ];
    for (name, help) in gauges {
        describe_gauge!(name, help);
    }
    let histograms = [
        ("tgi_request_duration", "Seconds from arrival to end"),
        (
            "tgi_request_validation_duration",
            "Seconds from arrival to the queue",
        ),
        ("tgi_request_queue_duration", "Seconds in the queue"),
        (
            "tgi_request_inference_duration",
            "Seconds from the first step to the end",
        ),
        (
            "tgi_request_mean_time_per_token_duration",
            "Seconds of inference per generated token",
        ),
        (
            "tgi_request_generated_tokens",
            "Tokens generated per request",
        ),
        ("tgi_request_input_length", "Prompt tokens per request"),
        (
            "tgi_request_max_new_tokens",
            "Most tokens that a request may generate",
        ),
        ("tgi_batch_next_size", "Requests admitted together"),
        (
            "tgi_batch_inference_duration",
            "Seconds of a step, from sending its plan to handling its result",
        ),
        (
            "tgi_batch_forward_duration",
            "Seconds of a step in the model's forward pass",
        ),
        (
            "tgi_batch_decode_duration",
            "Seconds of handling a step's result",
        ),
        (
            "penstock_time_to_first_token_duration",
            "Seconds from submission to the first token",
        ),
        (
            "penstock_inter_token_duration",
            "Seconds between two tokens of a request",
        ),
    ];
    for (name, help) in histograms {
        describe_histogram!(name, help);
    }
}
