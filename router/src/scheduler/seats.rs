//! Seats and penalty lanes of the shard. A seat that a request has left is named in the `frees` of the next plan, and
//! can be registered again when that plan is acknowledged; its lane goes with it.

use std::collections::VecDeque;

use super::step::Seat;

/// A seat held by one request, with its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Occupancy {
    pub(super) seat: Seat,
    pub(super) lane: Option<u32>,
}

/// Who may sit where.
#[derive(Debug)]
pub(super) struct Seats {
    /// Last generation of each seat; 0 before the first.
    generations: Vec<u32>,
    free: Vec<u32>,
    free_lanes: Vec<u32>,
    /// Left, but the shard has not been told.
    leaving: Vec<Occupancy>,
    /// Named in the frees of a plan that is not acknowledged.
    fenced: VecDeque<(u64, Occupancy)>,
}

impl Seats {
    pub(super) fn new(num_seats: u32, num_lanes: u32) -> Self {
        Self {
            generations: vec![0; num_seats as usize],
            free: (0..num_seats).rev().collect(),
            free_lanes: (0..num_lanes).rev().collect(),
            leaving: Vec::new(),
            fenced: VecDeque::new(),
        }
    }

    /// A seat, with a lane if wanted; `None` while there is none.
    pub(super) fn take(&mut self, wants_lane: bool) -> Option<Occupancy> {
        if wants_lane && self.free_lanes.is_empty() {
            return None;
        }
        let index = self.free.pop()?;
        let lane = if wants_lane {
            self.free_lanes.pop()
        } else {
            None
        };
        let last = &mut self.generations[index as usize];
        *last = if *last == i32::MAX as u32 {
            1
        } else {
            *last + 1
        };
        let seat = Seat {
            index,
            generation: *last,
        };
        Some(Occupancy { seat, lane })
    }

    /// Undoes [`take`](Self::take) for a seat that no plan has named.
    pub(super) fn put_back(&mut self, occupancy: Occupancy) {
        self.free.push(occupancy.seat.index);
        self.free_lanes.extend(occupancy.lane);
    }

    /// The request has ended.
    pub(super) fn leave(&mut self, occupancy: Occupancy) {
        self.leaving.push(occupancy);
    }

    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn has_free_lane(&self) -> bool {
        !self.free_lanes.is_empty()
    }

    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// The frees of plan `plan_id`.
    pub(super) fn send_frees(&mut self, plan_id: u64) -> Vec<Seat> {
        let frees = self.leaving.iter().map(|left| left.seat).collect();
        self.fenced
            .extend(self.leaving.drain(..).map(|left| (plan_id, left)));
        frees
    }

    /// Plan `plan_id` and all before it have been executed.
    pub(super) fn acknowledge(&mut self, plan_id: u64) {
        while let Some(&(fence, occupancy)) = self.fenced.front()
            && fence <= plan_id
        {
            self.fenced.pop_front();
            self.put_back(occupancy);
        }
    }

    /// Seats that are free, leaving or fenced, for the tests' inventory.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.free.len() + self.leaving.len() + self.fenced.len()
    }

    #[cfg(test)]
    pub(super) fn idle_lanes(&self) -> usize {
        let on_the_way = self
            .leaving
            .iter()
            .chain(self.fenced.iter().map(|(_, left)| left))
            .filter(|left| left.lane.is_some())
            .count();
        self.free_lanes.len() + on_the_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_returns_with_a_new_generation_after_the_acknowledgement() {
        let mut seats = Seats::new(1, 1);
        let first = seats.take(true).unwrap();
        assert_eq!(
            first.seat,
            Seat {
                index: 0,
                generation: 1
            }
        );
        assert!(seats.take(false).is_none());
        seats.leave(first);
        assert!(seats.take(false).is_none(), "the shard has not been told");
        assert_eq!(seats.send_frees(4), [first.seat]);
        seats.acknowledge(3);
        assert!(seats.take(false).is_none(), "plan 4 is still on its way");
        seats.acknowledge(4);
        let second = seats.take(true).unwrap();
        assert_eq!(second.seat.generation, 2);
        assert_eq!(second.lane, Some(0));
    }

    #[test]
    fn a_lane_is_not_taken_when_no_seat_is_left() {
        let mut seats = Seats::new(2, 1);
        let with_lane = seats.take(true).unwrap();
        assert!(seats.take(true).is_none(), "no lane left");
        assert!(seats.take(false).is_some());
        seats.put_back(with_lane);
        assert!(seats.take(true).is_some());
    }
}
