use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::engine::blob;
use crate::engine::fake::{FakeConfig, FakeShard};
use crate::scheduler::{Counters, GroupLimits, Scheduler};

const LIMITS: Limits = Limits {
    max_input_tokens: 10,
    max_total_tokens: 20,
    max_stop_sequences: 2,
    max_top_n_tokens: 5,
    vocab_size: 300,
};

fn draft() -> Draft {
    Draft {
        do_sample: true,
        ..Draft::new(NATIVE_NAMES)
    }
}

/// The error of a draft that `change` made, or "ok".
fn outcome(change: impl FnOnce(&mut Draft)) -> String {
    let mut draft = draft();
    change(&mut draft);
    match check(draft, &LIMITS, 7) {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.message,
    }
}

fn prompt(num_tokens: usize, change: impl FnOnce(&mut Draft)) -> Result<Request> {
    let mut draft = draft();
    change(&mut draft);
    let eos_ids = Arc::from([257]);
    let ids = (0..num_tokens)
        .map(|id| u32::try_from(id).unwrap())
        .collect();
    check(draft, &LIMITS, 7).and_then(|checked| checked.with_prompt(RequestId(1), ids, &eos_ids))
}

#[test]
fn numbers_are_held_against_their_limits() {
    let cases: Vec<(&str, String)> = vec![
        ("temperature 0", outcome(|d| d.temperature = Some(0.0))),
        (
            "temperature 1e-50",
            outcome(|d| d.temperature = Some(1e-50)),
        ),
        (
            "temperature 1e-40",
            outcome(|d| d.temperature = Some(1e-40)),
        ),
        (
            "temperature 1.2e-38",
            outcome(|d| d.temperature = Some(1.2e-38)),
        ),
        (
            "repetition_penalty 1e-40",
            outcome(|d| d.repetition_penalty = Some(1e-40)),
        ),
        ("top_p 1e-40", outcome(|d| d.top_p = Some(1e-40))),
        ("top_k 2^31", outcome(|d| d.top_k = Some(1 << 31))),
        ("top_k 2^31 - 1", outcome(|d| d.top_k = Some((1 << 31) - 1))),
        (
            "min_new_tokens 2^31",
            outcome(|d| d.min_new_tokens = Some(1 << 31)),
        ),
        ("temperature 1e39", outcome(|d| d.temperature = Some(1e39))),
        ("temperature 0.01", outcome(|d| d.temperature = Some(0.01))),
        (
            "repetition_penalty -1",
            outcome(|d| d.repetition_penalty = Some(-1.0)),
        ),
        (
            "frequency_penalty 2",
            outcome(|d| d.frequency_penalty = Some(2.0)),
        ),
        (
            "frequency_penalty 2.1",
            outcome(|d| d.frequency_penalty = Some(2.1)),
        ),
        (
            "presence_penalty -2.1",
            outcome(|d| d.presence_penalty = Some(-2.1)),
        ),
        ("top_p 0", outcome(|d| d.top_p = Some(0.0))),
        ("top_p 1", outcome(|d| d.top_p = Some(1.0))),
        ("top_p 1.1", outcome(|d| d.top_p = Some(1.1))),
        ("typical_p NaN", outcome(|d| d.typical_p = Some(f64::NAN))),
        ("min_p 1", outcome(|d| d.min_p = Some(1.0))),
        ("top_k 0", outcome(|d| d.top_k = Some(0))),
        ("top_k 1", outcome(|d| d.top_k = Some(1))),
        ("max_new_tokens 0", outcome(|d| d.max_new_tokens = Some(0))),
        (
            "max_new_tokens 2^32",
            outcome(|d| d.max_new_tokens = Some(1 << 32)),
        ),
        (
            "min_new_tokens 3 of 2",
            outcome(|d| (d.min_new_tokens, d.max_new_tokens) = (Some(3), Some(2))),
        ),
        ("stop x2", outcome(|d| d.stop = vec!["a".into(); 2])),
        ("stop x3", outcome(|d| d.stop = vec!["a".into(); 3])),
        ("stop empty", outcome(|d| d.stop = vec![String::new()])),
        ("truncate 0", outcome(|d| d.truncate = Some(0))),
        ("truncate 10", outcome(|d| d.truncate = Some(10))),
        ("truncate 11", outcome(|d| d.truncate = Some(11))),
        ("top_n_tokens 5", outcome(|d| d.top_n_tokens = Some(5))),
        ("top_n_tokens 6", outcome(|d| d.top_n_tokens = Some(6))),
        ("top_n_tokens -1", outcome(|d| d.top_n_tokens = Some(-1))),
        (
            "logit_bias 300",
            outcome(|d| d.logit_bias = vec![("300".into(), 1.0)]),
        ),
        (
            "logit_bias +1",
            outcome(|d| d.logit_bias = vec![("+1".into(), 1.0)]),
        ),
        (
            "logit_bias 01",
            outcome(|d| d.logit_bias = vec![("01".into(), 1.0)]),
        ),
        (
            "logit_bias twice",
            outcome(|d| d.logit_bias = vec![("1".into(), 1.0), ("1".into(), 2.0)]),
        ),
        (
            "logit_bias 1025 entries",
            outcome(|d| d.logit_bias = (0..1025).map(|id| (id.to_string(), 1.0)).collect()),
        ),
        (
            "logit_bias 101",
            outcome(|d| d.logit_bias = vec![("1".into(), 101.0)]),
        ),
        ("best_of", outcome(|d| d.unsupported.push("best_of"))),
    ];
    let cases: Vec<String> = cases
        .iter()
        .map(|(name, got)| format!("{name}: {got}"))
        .collect();
    insta::assert_snapshot!(cases.join("\n"), @r#"
temperature 0: `temperature` must be strictly positive (> 0). Given: 0
temperature 1e-50: `temperature` must be >= 1.1754944e-38. Given: 1e-50
temperature 1e-40: `temperature` must be >= 1.1754944e-38. Given: 1e-40
temperature 1.2e-38: ok
repetition_penalty 1e-40: `repetition_penalty` must be >= 1.1754944e-38. Given: 1e-40
top_p 1e-40: `top_p` must be >= 1.1754944e-38. Given: 1e-40
top_k 2^31: `top_k` must be <= 2147483647. Given: 2147483648
top_k 2^31 - 1: ok
min_new_tokens 2^31: `min_new_tokens` must be >= 0 and <= 2147483647 (`max_new_tokens`). Given: 2147483648
temperature 1e39: `temperature` must be finite and at most 3.4028235e38. Given: 1e39
temperature 0.01: ok
repetition_penalty -1: `repetition_penalty` must be strictly positive (> 0). Given: -1
frequency_penalty 2: ok
frequency_penalty 2.1: `frequency_penalty` must be >= -2.0 and <= 2.0. Given: 2.1
presence_penalty -2.1: `presence_penalty` must be >= -2.0 and <= 2.0. Given: -2.1
top_p 0: `top_p` must be > 0.0 and <= 1.0. Given: 0
top_p 1: ok
top_p 1.1: `top_p` must be > 0.0 and <= 1.0. Given: 1.1
typical_p NaN: `typical_p` must be finite and at most 3.4028235e38. Given: NaN
min_p 1: `min_p` must be >= 0.0 and < 1.0. Given: 1
top_k 0: `top_k` must be strictly positive (>= 1). Given: 0
top_k 1: ok
max_new_tokens 0: `max_new_tokens` must be strictly positive (>= 1). Given: 0
max_new_tokens 2^32: `max_new_tokens` must be <= 2147483647. Given: 4294967296
min_new_tokens 3 of 2: `min_new_tokens` must be >= 0 and <= 2 (`max_new_tokens`). Given: 3
stop x2: ok
stop x3: `stop` supports up to 2 stop sequences. Given: 3
stop empty: `stop` sequences must have at least 1 character. Given: ""
truncate 0: `truncate` must be strictly positive and <= 10. Given: 0
truncate 10: ok
truncate 11: `truncate` must be strictly positive and <= 10. Given: 11
top_n_tokens 5: ok
top_n_tokens 6: `top_n_tokens` must be >= 0 and <= 5. Given: 6
top_n_tokens -1: `top_n_tokens` must be >= 0 and <= 5. Given: -1
logit_bias 300: `logit_bias` keys must be token ids < 300. Given: "300"
logit_bias +1: `logit_bias` keys must be token ids < 300. Given: "+1"
logit_bias 01: `logit_bias` keys must be token ids < 300. Given: "01"
logit_bias twice: `logit_bias` must name each token id once. Given: "1" twice
logit_bias 1025 entries: `logit_bias` must have <= 1024 entries. Given: 1025
logit_bias 101: `logit_bias` values must be >= -100 and <= 100. Given: 101
best_of: `best_of` is not supported yet
"#);
}

#[test]
fn prompts_are_held_against_their_limits() {
    let cases = [
        ("0 tokens", prompt(0, |_| ())),
        ("10 tokens", prompt(10, |_| ())),
        ("11 tokens", prompt(11, |_| ())),
        ("10 + 10", prompt(10, |d| d.max_new_tokens = Some(10))),
        ("10 + 11", prompt(10, |d| d.max_new_tokens = Some(11))),
        (
            "15 cut to 10, + 10",
            prompt(15, |d| {
                (d.truncate, d.max_new_tokens) = (Some(10), Some(10))
            }),
        ),
    ];
    let cases: Vec<String> = cases
        .into_iter()
        .map(|(name, got)| match got {
            Ok(request) => format!(
                "{name}: ok, {} new tokens after {:?}",
                request.max_new_tokens, request.prompt_ids
            ),
            Err(error) => format!("{name}: [{}] {}", error.field, error.message),
        })
        .collect();
    insta::assert_snapshot!(cases.join("\n"), @r#"
0 tokens: [inputs] `inputs` cannot be empty
10 tokens: ok, 10 new tokens after [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
11 tokens: [inputs] `inputs` must have <= 10 tokens. Given: 11
10 + 10: ok, 10 new tokens after [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
10 + 11: [max_new_tokens] `inputs` tokens + `max_new_tokens` must be <= 20. Given: 10 `inputs` tokens and 11 `max_new_tokens`
15 cut to 10, + 10: ok, 10 new tokens after [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
"#);
}

#[test]
fn an_id_outside_the_vocabulary_is_refused() {
    let checked = check(draft(), &LIMITS, 7).unwrap();
    let error = checked.with_prompt(RequestId(1), vec![5, 300], &Arc::default());
    assert_eq!(
        error.unwrap_err().message,
        "`inputs` token ids must be < 300. Given: 300"
    );
}

#[test]
fn greedy_requests_have_neutral_warpers_and_no_seed_to_report() {
    let mut draft = draft();
    draft.do_sample = false;
    draft.temperature = Some(0.5);
    draft.top_p = Some(0.5);
    draft.ignore_eos = true;
    let checked = check(draft, &LIMITS, 7).unwrap();
    assert_eq!(checked.seed(), None);
    let request = checked
        .with_prompt(RequestId(1), vec![1], &Arc::from([2]))
        .unwrap();
    assert_eq!(
        (request.sampling.temperature, request.sampling.top_p),
        (1.0, 1.0)
    );
    assert!(request.stop_ids.is_empty());
}

#[test]
fn the_kv_cache_bounds_what_the_flags_allow() {
    let facts = EngineFacts {
        architecture: String::new(),
        dtype: String::new(),
        device_type: String::new(),
        vocab_size: 300,
        max_positions: 4096,
        num_ranks: 1,
        tokens_per_block: 16,
        num_blocks: 10,
        max_top_logprobs: 3,
    };
    let config = LimitsConfig {
        max_concurrent_requests: 128,
        max_queue_size: None,
        queue_timeout: None,
        max_best_of: 2,
        max_stop_sequences: 4,
        max_top_n_tokens: 20,
        max_client_batch_size: 4,
        max_input_tokens: None,
        max_total_tokens: Some(1000),
        payload_limit: 1,
        validation_workers: 1,
    };
    let limits = Limits::new(&config, &facts);
    assert_eq!(
        (
            limits.max_total_tokens,
            limits.max_input_tokens,
            limits.max_top_n_tokens
        ),
        (160, 159, 3)
    );
}

#[test]
fn end_tokens_outside_the_vocabulary_are_left_out() {
    let checked = check(draft(), &LIMITS, 7).unwrap();
    let eos_ids = Arc::from([257, 300]);
    let request = checked.with_prompt(RequestId(1), vec![5], &eos_ids);
    assert_eq!(*request.unwrap().stop_ids, [257]);
}

/// One field of a draft, with a number that is likely to be at or beyond some edge.
fn change() -> impl Strategy<Value = (u8, f64, i64, String)> {
    let edges = [
        0.0,
        1e-50,
        1e-45,
        1e-40,
        f64::from(f32::MIN_POSITIVE),
        1.0,
        1.0 - 1e-9,
        2.0,
        f64::from(f32::MAX),
        f64::MAX,
    ];
    let float = prop_oneof![
        any::<f64>(),
        0.0..1.5,
        (0..edges.len(), any::<bool>()).prop_map(move |(edge, negative)| if negative {
            -edges[edge]
        } else {
            edges[edge]
        }),
    ];
    let near = |edge: i64| edge - 2..edge + 3;
    let int = prop_oneof![
        any::<i64>(),
        near(0),
        near(1 << 31),
        near(1 << 32),
        near(20)
    ];
    let key = prop_oneof!["[+0]?[0-9]{1,3}", "[0-9]{1,11}"];
    (0u8..13, float, int, key)
}

fn apply(draft: &mut Draft, (field, float, int, key): (u8, f64, i64, String)) {
    match field {
        0 => draft.temperature = Some(float),
        1 => draft.repetition_penalty = Some(float),
        2 => draft.frequency_penalty = Some(float),
        3 => draft.presence_penalty = Some(float),
        4 => draft.top_p = Some(float),
        5 => draft.typical_p = Some(float),
        6 => draft.min_p = Some(float),
        7 => draft.top_k = Some(int),
        8 => draft.max_new_tokens = Some(int),
        9 => draft.min_new_tokens = Some(int),
        10 => draft.top_n_tokens = Some(int),
        11 => draft.logit_bias.push((key, float.rem_euclid(100.0))),
        _ => draft.seed = Some(int.cast_unsigned()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// A plan that a shard refuses ends everybody's requests, so no request may lead to one.
    #[test]
    fn whatever_is_accepted_the_shard_accepts(changes in vec(change(), 0..4), num_ids in 1u32..12) {
        let mut draft = draft();
        for change in changes {
            apply(&mut draft, change);
        }
        let fake = FakeConfig::default();
        let limits = Limits { vocab_size: 1000, ..LIMITS };
        let ids: Vec<u32> = (0..num_ids).collect();
        let eos_ids = Arc::from([257, 1000, u32::MAX]);
        let request = check(draft, &limits, 7)
            .and_then(|checked| checked.with_prompt(RequestId(1), ids, &eos_ids));
        if let Ok(request) = request {
            let scheduler_limits = crate::scheduler::Limits {
                vocab_size: 1000,
                groups: vec![GroupLimits { tokens_per_block: 16, num_blocks: 9 }],
                num_seats: 1,
                num_lanes: 1,
                max_rows: 1,
                max_prompt_tokens: 64,
                mixed_sizes: vec![64],
                depth: 1,
            };
            let mut scheduler = Scheduler::new(scheduler_limits, crate::scheduler::Policy::default(), Counters::default());
            let mut out = Vec::new();
            scheduler.submit(request, Duration::ZERO, &mut out);
            let plan = scheduler.plan(Duration::ZERO, &mut Vec::new()).expect("an idle engine has room");
            let mut shard = FakeShard::new(&fake.info, fake.model());
            let result = shard.execute(plan.id, &blob::encode(&plan));
            prop_assert!(result.is_ok(), "{:?}", result);
        }
    }
}
