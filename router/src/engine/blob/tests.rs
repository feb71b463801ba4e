use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::request::{LogprobParams, SamplingParams};
use crate::scheduler::step::{Append, Extent, Seat};

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let floats = (0.01f32..5.0, 0.01f32..=1.0, 0.0f32..=1.0, -2.0f32..2.0);
    let rest = (
        any::<bool>(),
        any::<u64>(),
        0u32..100,
        vec((0u32..1000, -100.0f32..100.0), 0..3),
    );
    (floats, rest).prop_map(
        |((positive, share, min_p, signed), (do_sample, seed, number, logit_bias))| {
            SamplingParams {
                do_sample,
                temperature: positive,
                top_k: number,
                top_p: share,
                typical_p: share,
                min_p,
                repetition_penalty: positive,
                frequency_penalty: signed,
                presence_penalty: -signed,
                seed,
                fork: number,
                logit_bias,
                min_new_tokens: number,
            }
        },
    )
}

/// What the words of a plan can count and name.
const INT32: std::ops::RangeInclusive<u32> = 0..=i32::MAX as u32;

fn registration() -> impl Strategy<Value = Registration> {
    let logprobs = proptest::option::of(
        (any::<bool>(), 0u32..20).prop_map(|(raw, num_top)| LogprobParams { raw, num_top }),
    );
    (
        (0u32..64, 1u32..=i32::MAX as u32, 1u32..500, 1u32..500),
        proptest::option::of(0u32..8),
        sampling(),
        logprobs,
        (vec(INT32, 0..3), vec(INT32, 0..3)),
        vec(INT32, 0..9),
    )
        .prop_map(
            |(
                (index, generation, prompt_len, new),
                penalty_lane,
                sampling,
                logprobs,
                ids,
                mut history,
            )| {
                if penalty_lane.is_none() {
                    history.clear();
                }
                Registration {
                    seat: Seat { index, generation },
                    prompt_len,
                    max_len: prompt_len + new,
                    penalty_lane,
                    sampling,
                    logprobs,
                    banned_ids: ids.0,
                    min_length_ids: ids.1,
                    num_generated: u32::try_from(history.len() / 2).unwrap(),
                    history_ids: history,
                }
            },
        )
}

/// Rows of distinct seats, with the ids that they feed.
fn rows() -> impl Strategy<Value = (Rows, Vec<u32>)> {
    let listed = vec((any::<bool>(), 0u32..9, vec(any::<u32>(), 0..4)), 0..12).prop_map(|rows| {
        let mut feed_ids = Vec::new();
        let rows = rows
            .into_iter()
            .zip(0..)
            .map(|((sample, start, ids), seat)| {
                feed_ids.extend_from_slice(&ids);
                let count = u32::try_from(ids.len()).unwrap();
                let feed = (count > 0).then_some(Extent { start, count });
                Row { seat, sample, feed }
            });
        (Rows::Listed(rows.collect()), feed_ids)
    });
    prop_oneof![
        4 => listed,
        1 => (0u32..300).prop_map(|count| (Rows::SameAsPrevious(count), Vec::new())),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let seat = (0u32..99, 1u32..99).prop_map(|(index, generation)| Seat { index, generation });
    let append = (INT32, INT32, INT32, INT32).prop_map(|(seat, group, index, block)| Append {
        seat,
        group,
        index,
        block,
    });
    (
        any::<u64>(),
        vec(seat, 0..4),
        vec(registration(), 0..4),
        vec(append, 0..4),
        rows(),
    )
        .prop_map(
            |(id, frees, registrations, appends, (rows, feed_ids))| Plan {
                id,
                frees,
                registrations,
                appends,
                rows,
                feed_ids,
            },
        )
}

proptest! {
    #[test]
    fn a_plan_survives_the_trip(plan in plan()) {
        prop_assert_eq!(decode(plan.id, &encode(&plan)), Ok(plan));
    }

    #[test]
    fn no_cut_blob_is_a_plan(plan in plan(), cut in any::<prop::sample::Index>()) {
        let blob = encode(&plan);
        let cut = cut.index(blob.len());
        prop_assert!(decode(1, &blob[..cut]).is_err());
    }

    #[test]
    fn any_words_are_answered(words in vec(prop_oneof![0u32..6, any::<u32>()], 0..90)) {
        let mut blob = vec![1, 0, 0, 0];
        blob.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        // Whatever it is, it neither panics nor allocates by a count that it has not seen the words of.
        let _ = decode(1, &blob);
    }
}

fn simple() -> Vec<u32> {
    let mut words = vec![1, 0, 2, 1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0];
    words.extend([5, 1]); // frees
    words.extend([0, 0, 0, 7]); // appends
    words.extend([ROW_SAMPLE, ROW_SAMPLE | ROW_FEED | 3]);
    words.extend([0, 2]); // extents
    words.extend([11, 12]);
    words
}

fn decode_words(words: &[u32]) -> Result<Plan, BlobError> {
    let blob: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    decode(1, &blob)
}

#[test]
fn layout_is_that_of_the_protocol() {
    let plan = decode_words(&simple()).unwrap();
    assert_eq!(plan.feed_ids, [11, 12]);
    assert_eq!(
        plan.rows,
        Rows::Listed(vec![
            Row {
                seat: 0,
                sample: true,
                feed: None
            },
            Row {
                seat: 3,
                sample: true,
                feed: Some(Extent { start: 0, count: 2 })
            },
        ])
    );
    let blob: Vec<u8> = simple()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(encode(&plan), blob);
}

#[test]
fn malformed_blobs_are_named() {
    // (word to change, its value, what is said)
    let cases = [
        (0, 2, "layout version 2; this is version 1"),
        (1, 2, "unknown plan flags 0x2"),
        (
            1,
            1,
            "num_feed_rows of a plan with SAME_ROWS is 1, expected 0",
        ),
        (3, 2, "num_feed_rows is 2, expected 1"),
        (4, 1, "num_feed_ids is 1, expected 2"),
        (
            4,
            3,
            "the blob ends inside its feed ids: 1 more words needed, 2 left",
        ),
        (7, 1, "num_registration_words is 1, expected 0"),
        (9, 1, "block copies are not supported by this engine"),
        (12, 2, "repeated plans are not supported by this engine"),
        (13, 1, "weight versions are not supported by this engine"),
        (15, 0, "generation 0 is out of range"),
        (
            20,
            ROW_MASKED,
            "grammar masks are not supported by this engine",
        ),
        (20, 1 << 27, "unknown row flags 0x8000000"),
        (20, 3, "seat 3 has two rows"),
        (23, 0, "extent 0, 0 is out of range"),
        (22, u32::MAX, "extent 4294967295, 2 is out of range"),
        (2, 1 << 31, "header word -2147483648 is out of range"),
        (18, u32::MAX, "append -1 is out of range"),
    ];
    for (word, value, message) in cases {
        let mut words = simple();
        words[word] = value;
        assert_eq!(
            decode_words(&words).unwrap_err().to_string(),
            message,
            "word {word} = {value}"
        );
    }
    let mut words = simple();
    words.push(0);
    assert_eq!(decode_words(&words), Err(BlobError::Trailing(1)));
    assert_eq!(decode(1, &[0; 7]), Err(BlobError::Ragged(7)));
}

#[test]
fn words_that_are_negative_are_refused() {
    let greedy = SamplingParams::greedy(1);
    let registration = Registration {
        seat: Seat {
            index: 0,
            generation: 1,
        },
        prompt_len: 1,
        max_len: 2,
        penalty_lane: Some(0),
        sampling: SamplingParams {
            logit_bias: vec![(1, 1.0)],
            ..greedy
        },
        logprobs: None,
        banned_ids: vec![1],
        min_length_ids: vec![1],
        history_ids: vec![1],
        num_generated: 0,
    };
    let plan = Plan {
        id: 1,
        frees: Vec::new(),
        registrations: vec![registration],
        appends: Vec::new(),
        rows: Rows::Listed(Vec::new()),
        feed_ids: Vec::new(),
    };
    let blob = encode(&plan);
    assert_eq!(decode(1, &blob), Ok(plan));
    // (word of the record, what is said)
    let cases = [
        (2, "prompt_len -2 is out of range"),
        (3, "max_len -2 is out of range"),
        (5, "penalty_lane -2 is out of range"),
        (8, "fork index -2 is out of range"),
        (10, "top_k -2 is out of range"),
        (20, "min_new_tokens -2 is out of range"),
        (21, "num_bias -2 is out of range"),
        (24, "num_history -2 is out of range"),
        (26, "bias id -2 is out of range"),
        (28, "banned ids -2 is out of range"),
        (29, "min-length ids -2 is out of range"),
        (30, "history ids -2 is out of range"),
    ];
    for (word, message) in cases {
        let mut blob = blob.to_vec();
        let at = 4 * (HEADER_WORDS + word);
        blob[at..at + 4].copy_from_slice(&(-2i32).to_le_bytes());
        let error = decode(1, &blob).unwrap_err();
        assert_eq!(error.to_string(), message, "word {word}");
    }
    let mut without_lane = blob.to_vec();
    let at = 4 * (HEADER_WORDS + 5);
    without_lane[at..at + 4].copy_from_slice(&NO_LANE.to_le_bytes());
    assert_eq!(
        decode(1, &without_lane).unwrap_err().to_string(),
        "num_history without a lane, 1 is out of range"
    );
}
