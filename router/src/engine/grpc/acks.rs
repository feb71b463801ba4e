//! Collects the acknowledgements of all ranks and holds them against each other.

use std::collections::VecDeque;

use crate::engine::{EngineError, wire};
use crate::pb;
use crate::scheduler::step::StepResult;

/// A plan that is not acknowledged by every rank.
#[derive(Debug)]
struct Pending {
    plan_id: u64,
    plan_checksum: u32,
    /// Per rank, once it has answered.
    ids_checksums: Vec<Option<u32>>,
    /// Of all ranks that have answered: each compiles for its own device.
    num_kernels_compiled: u32,
    /// From rank 0.
    result: Option<StepResult>,
}

/// Acknowledgements of the plans in flight, oldest first.
#[derive(Debug)]
pub(super) struct Acks {
    num_ranks: usize,
    pending: VecDeque<Pending>,
}

impl Acks {
    pub(super) fn new(num_ranks: usize) -> Self {
        Self {
            num_ranks,
            pending: VecDeque::new(),
        }
    }

    /// Plan `plan_id`, with this blob, is on its way.
    pub(super) fn expect(&mut self, plan_id: u64, plan_checksum: u32) {
        self.pending.push_back(Pending {
            plan_id,
            plan_checksum,
            ids_checksums: vec![None; self.num_ranks],
            num_kernels_compiled: 0,
            result: None,
        });
    }

    /// Rank `rank` has answered.
    pub(super) fn take(&mut self, rank: usize, ack: &pb::StepResult) -> Result<(), EngineError> {
        let oldest = self
            .pending
            .iter_mut()
            .find(|pending| pending.ids_checksums[rank].is_none());
        let Some(pending) = oldest else {
            return Err(EngineError::Mismatch(format!(
                "rank {rank} answered plan {}, which was not sent",
                ack.plan_id
            )));
        };
        if ack.plan_id != pending.plan_id {
            return Err(EngineError::Mismatch(format!(
                "rank {rank} answered plan {}, expected {}",
                ack.plan_id, pending.plan_id
            )));
        }
        if ack.plan_checksum != pending.plan_checksum {
            return Err(EngineError::Mismatch(format!(
                "rank {rank} decoded plan {} with checksum {:#010x}, sent was {:#010x}",
                ack.plan_id, ack.plan_checksum, pending.plan_checksum
            )));
        }
        pending.ids_checksums[rank] = Some(ack.ids_checksum);
        pending.num_kernels_compiled = pending
            .num_kernels_compiled
            .saturating_add(ack.num_kernels_compiled);
        if rank == 0 {
            let result = wire::result_from_wire(ack)
                .map_err(|message| EngineError::Rank { rank, message })?;
            pending.result = Some(result);
        }
        Ok(())
    }

    /// The oldest plan's result, once every rank has answered.
    pub(super) fn complete(&mut self) -> Result<Option<StepResult>, EngineError> {
        let Some(front) = self.pending.front_mut() else {
            return Ok(None);
        };
        if front.ids_checksums.iter().any(Option::is_none) {
            return Ok(None);
        }
        let first = front.ids_checksums[0];
        if let Some(rank) = front.ids_checksums.iter().position(|&sum| sum != first) {
            return Err(EngineError::Mismatch(format!(
                "rank {rank} holds other ids than rank 0 after plan {}",
                front.plan_id
            )));
        }
        let result = front.result.take().map(|result| StepResult {
            num_kernels_compiled: front.num_kernels_compiled,
            ..result
        });
        self.pending.pop_front();
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(plan_id: u64, plan_checksum: u32, ids_checksum: u32) -> pb::StepResult {
        pb::StepResult {
            plan_id,
            plan_checksum,
            ids_checksum,
            ..Default::default()
        }
    }

    #[test]
    fn a_step_counts_when_every_rank_has_answered() {
        let mut acks = Acks::new(2);
        acks.expect(1, 10);
        acks.expect(2, 20);
        acks.take(1, &ack(1, 10, 5)).unwrap();
        acks.take(1, &ack(2, 20, 6)).unwrap();
        assert!(acks.complete().unwrap().is_none());
        acks.take(0, &ack(1, 10, 5)).unwrap();
        assert_eq!(acks.complete().unwrap().unwrap().plan_id, 1);
        assert!(acks.complete().unwrap().is_none());
    }

    #[test]
    fn kernels_compiled_by_any_rank_are_counted() {
        let mut acks = Acks::new(3);
        acks.expect(1, 10);
        for (rank, num_kernels_compiled) in [(2, 5), (0, 1), (1, 0)] {
            let ack = pb::StepResult {
                num_kernels_compiled,
                ..ack(1, 10, 5)
            };
            acks.take(rank, &ack).unwrap();
        }
        let result = acks.complete().unwrap().unwrap();
        assert_eq!(result.num_kernels_compiled, 6);
    }

    #[test]
    fn contradictions_end_the_group() {
        let check = |answers: &[(usize, pb::StepResult)], message: &str| {
            let mut acks = Acks::new(2);
            acks.expect(1, 10);
            let error = answers
                .iter()
                .find_map(|(rank, answer)| acks.take(*rank, answer).err())
                .unwrap_or_else(|| acks.complete().unwrap_err());
            assert_eq!(
                error.to_string(),
                format!("the ranks are out of step: {message}")
            );
        };
        check(&[(0, ack(2, 10, 5))], "rank 0 answered plan 2, expected 1");
        check(
            &[(1, ack(1, 11, 5))],
            "rank 1 decoded plan 1 with checksum 0x0000000b, sent was 0x0000000a",
        );
        check(
            &[(0, ack(1, 10, 5)), (1, ack(1, 10, 6))],
            "rank 1 holds other ids than rank 0 after plan 1",
        );
        check(
            &[(0, ack(1, 10, 5)), (0, ack(2, 10, 5))],
            "rank 0 answered plan 2, which was not sent",
        );
    }
}
