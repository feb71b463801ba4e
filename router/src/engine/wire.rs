//! Between the generated messages and our own types: `Info` and the columns of a step's result.

use bytes::{BufMut, Bytes, BytesMut};

use super::{EngineError, EngineInfo, KvGroup, PROTOCOL};
use crate::pb;
use crate::scheduler::step::{RowResult, RowStatus, Seat, StepResult};

/// Seats have 24 bits in a row's word.
const MAX_SEATS: u32 = 1 << 24;

/// What rank `rank` of `num_ranks` says of itself, if we can drive it.
pub(super) fn info_from_wire(
    info: pb::InfoResponse,
    rank: usize,
    num_ranks: usize,
) -> Result<EngineInfo, EngineError> {
    let unsupported = |message: String| Err(EngineError::Unsupported(message));
    if info.protocol != PROTOCOL {
        return unsupported(format!(
            "protocol {} on rank {rank}; this router speaks {PROTOCOL}",
            info.protocol
        ));
    }
    if (info.rank as usize, info.num_ranks as usize) != (rank, num_ranks) {
        return unsupported(format!(
            "socket {rank} of {num_ranks} is rank {} of {}",
            info.rank, info.num_ranks
        ));
    }
    if info.num_seats > MAX_SEATS {
        return unsupported(format!("{} seats; at most {MAX_SEATS}", info.num_seats));
    }
    let mut groups = Vec::with_capacity(info.groups.len());
    for group in info.groups {
        if group.kind() != pb::KvGroupKind::Full {
            return unsupported(format!("KV group of kind {}", group.kind().as_str_name()));
        }
        groups.push(KvGroup {
            tokens_per_block: group.tokens_per_block,
            bytes_per_block: group.bytes_per_block,
            num_blocks: group.num_blocks,
        });
    }
    Ok(EngineInfo {
        architecture: info.architecture,
        dtype: info.dtype,
        device_type: info.device_type,
        num_ranks: info.num_ranks,
        vocab_size: info.vocab_size,
        max_positions: info.max_positions,
        groups,
        num_seats: info.num_seats,
        num_penalty_lanes: info.num_penalty_lanes,
        decode_sizes: info.decode_sizes,
        mixed_sizes: info.mixed_sizes,
        depth: info.depth,
        batch_invariant: info.batch_invariant,
        max_top_logprobs: info.max_top_logprobs,
    })
}

/// The counterpart of [`info_from_wire`], for shards written in Rust.
pub(super) fn info_to_wire(info: &EngineInfo, rank: u32) -> pb::InfoResponse {
    let groups = info.groups.iter().map(|group| pb::KvGroup {
        kind: pb::KvGroupKind::Full.into(),
        tokens_per_block: group.tokens_per_block,
        bytes_per_block: group.bytes_per_block,
        num_blocks: group.num_blocks,
    });
    pb::InfoResponse {
        protocol: PROTOCOL,
        rank,
        num_ranks: info.num_ranks,
        architecture: info.architecture.clone(),
        dtype: info.dtype.clone(),
        device_type: info.device_type.clone(),
        vocab_size: info.vocab_size,
        max_positions: info.max_positions,
        groups: groups.collect(),
        num_seats: info.num_seats,
        num_penalty_lanes: info.num_penalty_lanes,
        decode_sizes: info.decode_sizes.clone(),
        mixed_sizes: info.mixed_sizes.clone(),
        depth: info.depth,
        features: Vec::new(),
        batch_invariant: info.batch_invariant,
        max_top_logprobs: info.max_top_logprobs,
    }
}

/// The result that rank 0 sends.
pub(super) fn result_from_wire(result: &pb::StepResult) -> Result<StepResult, String> {
    let (records, []) = result.rows.as_chunks::<16>() else {
        return Err(format!("column rows has {} bytes", result.rows.len()));
    };
    let rows: Result<Vec<RowResult>, String> = records.iter().map(row_from_wire).collect();
    Ok(StepResult {
        plan_id: result.plan_id,
        rows: rows?,
        token_ids: column("token_ids", &result.token_ids, u32::from_le_bytes)?,
        logprobs: column("logprobs", &result.logprobs, f32::from_le_bytes)?,
        top_ids: column("top_ids", &result.top_ids, u32::from_le_bytes)?,
        top_logprobs: column("top_logprobs", &result.top_logprobs, f32::from_le_bytes)?,
        step_us: result.step_us,
        forward_us: result.forward_us,
        next_plan_waiting: result.next_plan_waiting,
        num_kernels_compiled: result.num_kernels_compiled,
    })
}

/// The counterpart of [`result_from_wire`]; the checksums are the caller's.
pub(super) fn result_to_wire(result: &StepResult) -> pb::StepResult {
    let mut rows = BytesMut::with_capacity(16 * result.rows.len());
    for row in &result.rows {
        rows.put_u32_le(row.seat.index);
        rows.put_u32_le(row.seat.generation);
        rows.put_u32_le(row.position);
        let status = pb::RowStatus::from(row.status) as u32;
        rows.put_u32_le(status | row.num_tokens << 8);
    }
    pb::StepResult {
        plan_id: result.plan_id,
        rows: rows.freeze(),
        token_ids: words(result.token_ids.iter().copied()),
        logprobs: words(result.logprobs.iter().map(|value| value.to_bits())),
        top_ids: words(result.top_ids.iter().copied()),
        top_logprobs: words(result.top_logprobs.iter().map(|value| value.to_bits())),
        step_us: result.step_us,
        forward_us: result.forward_us,
        next_plan_waiting: result.next_plan_waiting,
        num_kernels_compiled: result.num_kernels_compiled,
        ..Default::default()
    }
}

fn row_from_wire(record: &[u8; 16]) -> Result<RowResult, String> {
    let (words, _) = record.as_chunks::<4>();
    let word = |index: usize| u32::from_le_bytes(words[index]);
    let status = word(3) & 0xff;
    let known = i32::try_from(status)
        .ok()
        .and_then(|status| pb::RowStatus::try_from(status).ok())
        .and_then(status_from_wire);
    let Some(known) = known else {
        return Err(format!("unknown row status {status}"));
    };
    Ok(RowResult {
        seat: Seat {
            index: word(0),
            generation: word(1),
        },
        position: word(2),
        status: known,
        num_tokens: word(3) >> 8,
    })
}

fn status_from_wire(status: pb::RowStatus) -> Option<RowStatus> {
    Some(match status {
        pb::RowStatus::Unspecified => return None,
        pb::RowStatus::Ok => RowStatus::Ok,
        pb::RowStatus::Overrun => RowStatus::Overrun,
        pb::RowStatus::Nan => RowStatus::Nan,
        pb::RowStatus::Dead => RowStatus::Dead,
        pb::RowStatus::OutOfMemory => RowStatus::OutOfMemory,
        pb::RowStatus::BadInput => RowStatus::BadInput,
    })
}

impl From<RowStatus> for pb::RowStatus {
    fn from(status: RowStatus) -> Self {
        match status {
            RowStatus::Ok => Self::Ok,
            RowStatus::Overrun => Self::Overrun,
            RowStatus::Nan => Self::Nan,
            RowStatus::Dead => Self::Dead,
            RowStatus::OutOfMemory => Self::OutOfMemory,
            RowStatus::BadInput => Self::BadInput,
        }
    }
}

fn column<T>(name: &str, bytes: &[u8], value: fn([u8; 4]) -> T) -> Result<Vec<T>, String> {
    let (words, []) = bytes.as_chunks::<4>() else {
        return Err(format!("column {name} has {} bytes", bytes.len()));
    };
    Ok(words.iter().map(|&word| value(word)).collect())
}

fn words(values: impl ExactSizeIterator<Item = u32>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(4 * values.len());
    for value in values {
        bytes.put_u32_le(value);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_survives_the_trip() {
        let row = |index, status, num_tokens| RowResult {
            seat: Seat {
                index,
                generation: 9,
            },
            position: 77,
            status,
            num_tokens,
        };
        let result = StepResult {
            plan_id: 12,
            rows: vec![
                row(3, RowStatus::Ok, 1),
                row(4, RowStatus::Nan, 0),
                row(5, RowStatus::Ok, 2),
            ],
            token_ids: vec![1, 2, 3],
            logprobs: vec![-0.5],
            top_ids: vec![8, 9],
            top_logprobs: vec![-0.1, -0.2],
            step_us: 10,
            forward_us: 8,
            next_plan_waiting: true,
            num_kernels_compiled: 3,
        };
        assert_eq!(result_from_wire(&result_to_wire(&result)), Ok(result));
    }

    #[test]
    fn ragged_columns_and_unknown_statuses_are_refused() {
        let ragged = pb::StepResult {
            rows: Bytes::from_static(&[0; 15]),
            ..Default::default()
        };
        assert_eq!(
            result_from_wire(&ragged),
            Err("column rows has 15 bytes".to_owned())
        );
        let unknown = pb::StepResult {
            rows: Bytes::from_static(&[0; 16]),
            ..Default::default()
        };
        assert_eq!(
            result_from_wire(&unknown),
            Err("unknown row status 0".to_owned())
        );
    }
}
