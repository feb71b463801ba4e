//! The plan blob: little-endian 32-bit words, laid out as the staging buffer of the shard's device. The layout is
//! described at `Plan.blob` in `proto/shard/v1/shard.proto`.

mod decode;

pub use decode::{BlobError, decode};

use bytes::{BufMut, Bytes, BytesMut};

use crate::scheduler::step::{Plan, Registration, Row, Rows};

pub(super) const LAYOUT_VERSION: u32 = 1;
pub(super) const HEADER_WORDS: usize = 14;
pub(super) const REGISTRATION_WORDS: usize = 26;

pub(super) const PLAN_SAME_ROWS: u32 = 1;

pub(super) const ROW_SAMPLE: u32 = 1 << 30;
pub(super) const ROW_FEED: u32 = 1 << 29;
pub(super) const ROW_MASKED: u32 = 1 << 28;
pub(super) const ROW_SEAT: u32 = (1 << 24) - 1;

pub(super) const DO_SAMPLE: u32 = 1;
pub(super) const LOGPROBS: u32 = 1 << 1;
pub(super) const RAW_LOGPROBS: u32 = 1 << 2;
pub(super) const PROMPT_LOGPROBS: u32 = 1 << 3;

pub(super) const MODE_GENERATE: u32 = 1;
/// -1 as a word.
pub(super) const NO_LANE: u32 = u32::MAX;

/// The blob of a plan.
pub fn encode(plan: &Plan) -> Bytes {
    let Plan {
        id: _,
        frees,
        registrations,
        appends,
        rows,
        feed_ids,
    } = plan;
    let (listed, flags) = match rows {
        Rows::Listed(listed) => (listed.as_slice(), 0),
        Rows::SameAsPrevious(_) => (&[][..], PLAN_SAME_ROWS),
    };
    let num_feed_rows = listed.iter().filter(|row| row.feed.is_some()).count();
    let registration_words: usize = registrations.iter().map(registration_words).sum();
    let words = HEADER_WORDS
        + 2 * frees.len()
        + registration_words
        + 4 * appends.len()
        + listed.len()
        + 2 * num_feed_rows
        + feed_ids.len();
    let mut blob = BytesMut::with_capacity(4 * words);
    let header: [u32; HEADER_WORDS] = [
        LAYOUT_VERSION,
        flags,
        count(rows.len()),
        count(num_feed_rows),
        count(feed_ids.len()),
        count(frees.len()),
        count(registrations.len()),
        count(registration_words),
        count(appends.len()),
        0, // copies
        0, // padded rows: the shard chooses
        0, // padded tokens: the shard chooses
        0, // repeat
        0, // weight version
    ];
    put_words(&mut blob, &header);
    for seat in frees {
        put_words(&mut blob, &[seat.index, seat.generation]);
    }
    for registration in registrations {
        put_registration(&mut blob, registration);
    }
    for append in appends {
        put_words(
            &mut blob,
            &[append.seat, append.group, append.index, append.block],
        );
    }
    for row in listed {
        blob.put_u32_le(row_word(row));
    }
    for extent in listed.iter().filter_map(|row| row.feed) {
        put_words(&mut blob, &[extent.start, extent.count]);
    }
    put_words(&mut blob, feed_ids);
    debug_assert_eq!(blob.len(), 4 * words, "the capacity was exact");
    blob.freeze()
}

fn row_word(row: &Row) -> u32 {
    debug_assert!(row.seat <= ROW_SEAT, "Info is checked for too many seats");
    let sample = if row.sample { ROW_SAMPLE } else { 0 };
    let feed = if row.feed.is_some() { ROW_FEED } else { 0 };
    row.seat | sample | feed
}

fn registration_words(registration: &Registration) -> usize {
    REGISTRATION_WORDS
        + 2 * registration.sampling.logit_bias.len()
        + registration.banned_ids.len()
        + registration.min_length_ids.len()
        + registration.history_ids.len()
}

fn put_registration(blob: &mut BytesMut, registration: &Registration) {
    let Registration {
        seat,
        prompt_len,
        max_len,
        penalty_lane,
        sampling,
        logprobs,
        banned_ids,
        min_length_ids,
        history_ids,
        num_generated,
    } = registration;
    let mut flags = if sampling.do_sample { DO_SAMPLE } else { 0 };
    let mut num_top = 0;
    if let Some(params) = logprobs {
        flags |= LOGPROBS;
        flags |= if params.raw { RAW_LOGPROBS } else { 0 };
        num_top = params.num_top;
    }
    let seed = sampling.seed.to_le_bytes();
    put_words(
        blob,
        &[
            seat.index,
            seat.generation,
            *prompt_len,
            *max_len,
            flags,
            penalty_lane.unwrap_or(NO_LANE),
        ],
    );
    blob.put_slice(&seed);
    put_words(
        blob,
        &[
            sampling.fork,
            sampling.temperature.to_bits(),
            sampling.top_k,
            sampling.top_p.to_bits(),
            sampling.typical_p.to_bits(),
            sampling.min_p.to_bits(),
            sampling.repetition_penalty.to_bits(),
            sampling.frequency_penalty.to_bits(),
            sampling.presence_penalty.to_bits(),
            num_top,
            0, // adapter: base
            MODE_GENERATE,
            sampling.min_new_tokens,
            count(sampling.logit_bias.len()),
            count(banned_ids.len()),
            count(min_length_ids.len()),
            count(history_ids.len()),
            *num_generated,
        ],
    );
    for &(id, bias) in &sampling.logit_bias {
        put_words(blob, &[id, bias.to_bits()]);
    }
    put_words(blob, banned_ids);
    put_words(blob, min_length_ids);
    put_words(blob, history_ids);
}

fn put_words(blob: &mut BytesMut, words: &[u32]) {
    for &word in words {
        blob.put_u32_le(word);
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("no section of a plan comes near 2^32 entries")
}

#[cfg(test)]
mod tests;
