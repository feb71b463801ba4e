//! Reads a plan blob and refuses whatever is not exactly one.

use super::{
    DO_SAMPLE, HEADER_WORDS, LAYOUT_VERSION, LOGPROBS, MODE_GENERATE, NO_LANE, PLAN_SAME_ROWS,
    PROMPT_LOGPROBS, RAW_LOGPROBS, REGISTRATION_WORDS, ROW_FEED, ROW_MASKED, ROW_SAMPLE, ROW_SEAT,
};
use crate::request::{LogprobParams, SamplingParams};
use crate::scheduler::step::{Append, Extent, Plan, Registration, Row, Rows, Seat};

/// Why a blob is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BlobError {
    #[error("the blob has {0} bytes, which is not a whole number of words")]
    Ragged(usize),
    #[error("the blob ends inside its {section}: {need} more words needed, {have} left")]
    Short {
        section: &'static str,
        need: usize,
        have: usize,
    },
    #[error("{0} words are left after the end of the plan")]
    Trailing(usize),
    #[error("layout version {0}; this is version {LAYOUT_VERSION}")]
    Version(u32),
    #[error("unknown {what} flags {bits:#x}")]
    Flags { what: &'static str, bits: u32 },
    #[error("{0} are not supported by this engine")]
    Unsupported(&'static str),
    #[error("{what} is {got}, expected {expected}")]
    Count {
        what: &'static str,
        got: usize,
        expected: usize,
    },
    #[error("{what} {value} is out of range")]
    Range { what: &'static str, value: String },
    #[error("seat {0} has two rows")]
    TwoRows(u32),
}

/// The rest of the blob, word by word.
struct Reader<'a> {
    words: &'a [[u8; 4]],
}

impl<'a> Reader<'a> {
    fn words(
        &mut self,
        section: &'static str,
        need: usize,
    ) -> Result<impl Iterator<Item = u32> + use<'a>, BlobError> {
        let Some((taken, rest)) = self.words.split_at_checked(need) else {
            return Err(BlobError::Short {
                section,
                need: need - self.words.len(),
                have: self.words.len(),
            });
        };
        self.words = rest;
        Ok(taken.iter().map(|&word| u32::from_le_bytes(word)))
    }

    fn array<const N: usize>(&mut self, section: &'static str) -> Result<[u32; N], BlobError> {
        let mut array = [0; N];
        for (slot, word) in array.iter_mut().zip(self.words(section, N)?) {
            *slot = word;
        }
        Ok(array)
    }
}

/// The plan of a blob. Ids, seats and blocks are checked by whoever executes it.
pub fn decode(plan_id: u64, blob: &[u8]) -> Result<Plan, BlobError> {
    let (words, []) = blob.as_chunks::<4>() else {
        return Err(BlobError::Ragged(blob.len()));
    };
    let mut reader = Reader { words };
    let header: [u32; HEADER_WORDS] = reader.array("header")?;
    int32("header word", &header)?;
    let [
        version,
        flags,
        num_rows,
        num_feed_rows,
        num_feed_ids,
        num_frees,
        num_registrations,
        num_registration_words,
        num_appends,
        num_copies,
        _padded_rows,
        _padded_tokens,
        repeat,
        weight_version,
    ] = header;
    if version != LAYOUT_VERSION {
        return Err(BlobError::Version(version));
    }
    known_flags("plan", flags, PLAN_SAME_ROWS)?;
    let refused = [
        (num_copies != 0, "block copies"),
        (repeat > 1, "repeated plans"),
        (weight_version != 0, "weight versions"),
    ];
    refuse(&refused)?;

    let mut frees = Vec::new();
    for _ in 0..num_frees {
        let [index, generation] = reader.array("frees")?;
        frees.push(seat(index, generation)?);
    }
    let before = reader.words.len();
    let mut registrations = Vec::new();
    for _ in 0..num_registrations {
        registrations.push(registration(&mut reader)?);
    }
    equal(
        "num_registration_words",
        num_registration_words as usize,
        before - reader.words.len(),
    )?;
    let mut appends = Vec::new();
    for _ in 0..num_appends {
        let append = reader.array("appends")?;
        int32("append", &append)?;
        let [seat, group, index, block] = append;
        appends.push(Append {
            seat,
            group,
            index,
            block,
        });
    }
    let rows = if flags & PLAN_SAME_ROWS != 0 {
        equal(
            "num_feed_rows of a plan with SAME_ROWS",
            num_feed_rows as usize,
            0,
        )?;
        Rows::SameAsPrevious(num_rows)
    } else {
        Rows::Listed(rows(&mut reader, num_rows, num_feed_rows)?)
    };
    let feed_ids: Vec<u32> = reader.words("feed ids", num_feed_ids as usize)?.collect();
    equal("num_feed_ids", feed_ids.len(), fed(&rows))?;
    if !reader.words.is_empty() {
        return Err(BlobError::Trailing(reader.words.len()));
    }
    Ok(Plan {
        id: plan_id,
        frees,
        registrations,
        appends,
        rows,
        feed_ids,
    })
}

fn rows(reader: &mut Reader<'_>, num_rows: u32, num_feed_rows: u32) -> Result<Vec<Row>, BlobError> {
    let mut rows = Vec::new();
    for word in reader.words("rows", num_rows as usize)? {
        refuse(&[(word & ROW_MASKED != 0, "grammar masks")])?;
        known_flags("row", word & !ROW_SEAT, ROW_SAMPLE | ROW_FEED)?;
        let seat = word & ROW_SEAT;
        rows.push(Row {
            seat,
            sample: word & ROW_SAMPLE != 0,
            // Where the ids stand follows after all rows.
            feed: (word & ROW_FEED != 0).then_some(Extent { start: 0, count: 0 }),
        });
    }
    let mut seats: Vec<u32> = rows.iter().map(|row| row.seat).collect();
    seats.sort_unstable();
    if let Some(pair) = seats.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(BlobError::TwoRows(pair[0]));
    }
    let feeds = rows.iter_mut().filter_map(|row| row.feed.as_mut());
    let mut num_extents = 0;
    for extent in feeds {
        let [start, count] = reader.array("extents")?;
        if count == 0 || int32("", &[start, count]).is_err() {
            return Err(out_of_range("extent", &format_args!("{start}, {count}")));
        }
        *extent = Extent { start, count };
        num_extents += 1;
    }
    equal("num_feed_rows", num_feed_rows as usize, num_extents)?;
    Ok(rows)
}

/// Ids that the rows feed together.
fn fed(rows: &Rows) -> usize {
    match rows {
        Rows::SameAsPrevious(_) => 0,
        Rows::Listed(rows) => rows
            .iter()
            .filter_map(|row| row.feed)
            .map(|extent| extent.count as usize)
            .sum(),
    }
}

fn registration(reader: &mut Reader<'_>) -> Result<Registration, BlobError> {
    let words: [u32; REGISTRATION_WORDS] = reader.array("registrations")?;
    let [
        index,
        generation,
        prompt_len,
        max_len,
        flags,
        lane,
        seed_low,
        seed_high,
        fork,
        temperature,
        top_k,
        top_p,
        typical_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        num_top,
        adapter_id,
        mode,
        min_new_tokens,
        num_bias,
        num_banned,
        num_min_length_ids,
        num_history,
        num_generated,
    ] = words;
    refuse(&[
        (flags & PROMPT_LOGPROBS != 0, "prompt logprobs"),
        (adapter_id != 0, "adapters"),
        (mode != MODE_GENERATE, "modes other than generate"),
    ])?;
    known_flags("registration", flags, DO_SAMPLE | LOGPROBS | RAW_LOGPROBS)?;
    let asks = flags & LOGPROBS != 0;
    if !asks && num_top != 0 {
        return Err(out_of_range("num_top_logprobs without LOGPROBS,", &num_top));
    }
    let counts = [
        ("prompt_len", prompt_len),
        ("max_len", max_len),
        ("fork index", fork),
        ("top_k", top_k),
        ("num_top_logprobs", num_top),
        ("min_new_tokens", min_new_tokens),
        ("num_bias", num_bias),
        ("num_banned", num_banned),
        ("num_min_length_ids", num_min_length_ids),
        ("num_history", num_history),
    ];
    for (what, count) in counts {
        int32(what, &[count])?;
    }
    if lane != NO_LANE {
        int32("penalty_lane", &[lane])?;
    } else if num_history > 0 {
        return Err(out_of_range("num_history without a lane,", &num_history));
    }
    if num_generated > num_history || prompt_len == 0 || max_len <= prompt_len {
        return Err(out_of_range(
            "lengths (prompt, limit, history, generated)",
            &format_args!("{prompt_len}, {max_len}, {num_history}, {num_generated}"),
        ));
    }
    let mut logit_bias = Vec::new();
    for _ in 0..num_bias {
        let [id, bias] = reader.array("logit biases")?;
        int32("bias id", &[id])?;
        logit_bias.push((id, finite("logit bias", bias)?));
    }
    let sampling = SamplingParams {
        do_sample: flags & DO_SAMPLE != 0,
        temperature: within("temperature", temperature, f32::MIN_POSITIVE..=f32::MAX)?,
        top_k,
        top_p: within("top_p", top_p, f32::MIN_POSITIVE..=1.0)?,
        typical_p: within("typical_p", typical_p, f32::MIN_POSITIVE..=1.0)?,
        min_p: within("min_p", min_p, 0.0..=1.0)?,
        repetition_penalty: within(
            "repetition_penalty",
            repetition_penalty,
            f32::MIN_POSITIVE..=f32::MAX,
        )?,
        frequency_penalty: finite("frequency_penalty", frequency_penalty)?,
        presence_penalty: finite("presence_penalty", presence_penalty)?,
        seed: u64::from(seed_high) << 32 | u64::from(seed_low),
        fork,
        logit_bias,
        min_new_tokens,
    };
    Ok(Registration {
        seat: seat(index, generation)?,
        prompt_len,
        max_len,
        penalty_lane: (lane != NO_LANE).then_some(lane),
        sampling,
        logprobs: asks.then_some(LogprobParams {
            raw: flags & RAW_LOGPROBS != 0,
            num_top,
        }),
        banned_ids: ids(reader, "banned ids", num_banned)?,
        min_length_ids: ids(reader, "min-length ids", num_min_length_ids)?,
        history_ids: ids(reader, "history ids", num_history)?,
        num_generated,
    })
}

fn ids(reader: &mut Reader<'_>, section: &'static str, num: u32) -> Result<Vec<u32>, BlobError> {
    let ids: Vec<u32> = reader.words(section, num as usize)?.collect();
    int32(section, &ids)?;
    Ok(ids)
}

fn seat(index: u32, generation: u32) -> Result<Seat, BlobError> {
    if index > ROW_SEAT {
        return Err(out_of_range("seat", &index));
    }
    if !(1..=i32::MAX as u32).contains(&generation) {
        return Err(out_of_range("generation", &generation));
    }
    Ok(Seat { index, generation })
}

/// The words of a plan are signed, and nothing that counts or names is below 0.
fn int32(what: &'static str, words: &[u32]) -> Result<(), BlobError> {
    match words.iter().find(|&&word| word > i32::MAX as u32) {
        Some(word) => Err(out_of_range(what, &word.cast_signed())),
        None => Ok(()),
    }
}

fn finite(what: &'static str, bits: u32) -> Result<f32, BlobError> {
    within(what, bits, f32::MIN..=f32::MAX)
}

fn within(
    what: &'static str,
    bits: u32,
    range: std::ops::RangeInclusive<f32>,
) -> Result<f32, BlobError> {
    let value = f32::from_bits(bits);
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(out_of_range(what, &value))
    }
}

fn out_of_range(what: &'static str, value: &dyn std::fmt::Display) -> BlobError {
    BlobError::Range {
        what,
        value: value.to_string(),
    }
}

fn known_flags(what: &'static str, flags: u32, known: u32) -> Result<(), BlobError> {
    match flags & !known {
        0 => Ok(()),
        bits => Err(BlobError::Flags { what, bits }),
    }
}

fn refuse(unsupported: &[(bool, &'static str)]) -> Result<(), BlobError> {
    match unsupported.iter().find(|(present, _)| *present) {
        Some((_, what)) => Err(BlobError::Unsupported(what)),
        None => Ok(()),
    }
}

fn equal(what: &'static str, got: usize, expected: usize) -> Result<(), BlobError> {
    if got == expected {
        Ok(())
    } else {
        Err(BlobError::Count {
            what,
            got,
            expected,
        })
    }
}
