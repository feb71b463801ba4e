//! Requests that wait for their first row, or for their next one after they were stopped. Strict classes whose members
//! age; in a class those who have run before come first, then the tenant who has been served least (virtual token
//! counters: Sheng et al., "Fairness in Serving Large Language Models", 2024); of a tenant the request that came first.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::task::Task;
use crate::request::{RequestId, Scheduling};

/// After this long a request counts as of the next higher class.
const AGEING: Duration = Duration::from_secs(10);
/// A generated token costs a tenant this many prompt tokens.
const OUTPUT_WEIGHT: u64 = 2;
/// Service is counted in this part of a prompt token.
const FRACTION: u64 = 1 << 16;
/// So many tenants are remembered before those are forgotten who have no claim and no debt.
const MIN_TENANTS: usize = 1024;

/// Requests of one class.
#[derive(Debug, Default)]
struct Class {
    /// By arrival, with the time of submission: the first is the oldest.
    arrivals: BTreeMap<u64, (Duration, RequestId)>,
    /// Stopped before, by arrival.
    resumed: BTreeMap<u64, RequestId>,
    /// By service received, then tenant.
    tenants: BTreeSet<(u64, u64)>,
    /// By tenant, then arrival.
    new: BTreeMap<(u64, u64), RequestId>,
    /// Of these that cannot start now, whoever else may: in none of the above.
    parked: Vec<RequestId>,
    /// How many each tenant has of those that have not run before.
    num_new: HashMap<u64, usize>,
}

/// All that waits. Leaving costs O(log n) from any place: a client may go at any time.
#[derive(Debug, Default)]
pub(super) struct Queue {
    classes: [Class; Scheduling::CLASSES as usize],
    tasks: HashMap<RequestId, Task>,
    num_resumed: usize,
    next_arrival: u64,
    /// Service that each tenant has received, in weighted tokens.
    service: HashMap<u64, u64>,
    /// Tenants after which some are forgotten.
    most_tenants: usize,
    /// Who comes, or returns, starts from here at least: the service that tenants served last had before, and beyond that
    /// what each of those who wait got on average since. So those who wait have their turn before ever new ones.
    served: u64,
    /// The most that a tenant has received.
    most_served: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Requests that have not run yet.
    pub(super) fn num_new(&self) -> usize {
        self.tasks.len() - self.num_resumed
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Task> {
        self.tasks.get_mut(&id)
    }

    /// A request that has just come.
    pub(super) fn push(&mut self, mut task: Task) {
        task.arrival = self.next_arrival;
        self.next_arrival += 1;
        let Scheduling { class, tenant, .. } = task.request.scheduling;
        if self.tasks.is_empty() {
            // Nobody has had to wait for others' sake, so nobody owes anybody anything.
            self.served = self.most_served;
        }
        self.lift(tenant);
        let members = &mut self.classes[index(class)];
        *members.num_new.entry(tenant).or_default() += 1;
        self.line_up(&task);
        let before = self.tasks.insert(task.request.id, task);
        debug_assert!(before.is_none(), "request ids are never reused");
    }

    /// A request that has run before; it keeps its place.
    pub(super) fn push_resumed(&mut self, task: Task) {
        self.line_up(&task);
        self.num_resumed += 1;
        self.tasks.insert(task.request.id, task);
    }

    /// `None` if the request does not wait.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.step_out(&task);
        if task.started.is_some() {
            self.num_resumed -= 1;
        } else {
            let Scheduling { class, tenant, .. } = task.request.scheduling;
            self.classes[index(class)].take_one(tenant);
        }
        Some(task)
    }

    /// Takes a request out of the order until [`unpark`](Self::unpark), so that nobody has to look past it.
    pub(super) fn park(&mut self, id: RequestId) {
        if let Some(task) = self.tasks.remove(&id) {
            self.step_out(&task);
            let members = &mut self.classes[index(task.request.scheduling.class)];
            members.parked.push(id);
            self.tasks.insert(id, task);
        }
    }

    /// All that were parked have their places again.
    pub(super) fn unpark(&mut self) {
        for class in 0..self.classes.len() {
            for id in std::mem::take(&mut self.classes[class].parked) {
                // Those that have left meanwhile are not there any more.
                if let Some(task) = self.tasks.remove(&id) {
                    self.line_up(&task);
                    self.tasks.insert(id, task);
                }
            }
        }
    }

    fn line_up(&mut self, task: &Task) {
        let Scheduling { class, tenant, .. } = task.request.scheduling;
        let members = &mut self.classes[index(class)];
        let (id, arrival) = (task.request.id, task.arrival);
        members.arrivals.insert(arrival, (task.submitted, id));
        if task.started.is_some() {
            members.resumed.insert(arrival, id);
            return;
        }
        members.new.insert((tenant, arrival), id);
        let service = self.service.get(&tenant).copied().unwrap_or(0);
        members.tenants.insert((service, tenant));
    }

    fn step_out(&mut self, task: &Task) {
        let Scheduling { class, tenant, .. } = task.request.scheduling;
        let members = &mut self.classes[index(class)];
        members.arrivals.remove(&task.arrival);
        if members.resumed.remove(&task.arrival).is_some() {
            return;
        }
        members.new.remove(&(tenant, task.arrival));
        if members.of(tenant).next().is_none() {
            let service = self.service.get(&tenant).copied().unwrap_or(0);
            members.tenants.remove(&(service, tenant));
        }
    }

    /// The request to admit next, of those not in `tried`. Who has become older than a higher class goes before it alone:
    /// the rest of its class waits for its own turn.
    pub(super) fn next(&self, now: Duration, tried: &[RequestId]) -> Option<RequestId> {
        let untried = |id: &RequestId| !tried.contains(id);
        let classes = (1..).zip(&self.classes);
        let waiting = classes.filter_map(|(class, members)| {
            let mut arrivals = members.arrivals.iter();
            let (&arrival, &(submitted, id)) = arrivals.find(|(_, (_, id))| untried(id))?;
            let age = now.saturating_sub(submitted).as_secs() / AGEING.as_secs();
            let level = u64::saturating_sub(class, age).max(1);
            Some((level, arrival, id, class, members))
        });
        let waiting: Vec<_> = waiting.collect();
        let first = waiting
            .iter()
            .min_by_key(|&&(level, arrival, ..)| (level, arrival));
        let &(_, _, oldest, class, members) = first?;
        if waiting.iter().any(|&(.., other, _)| other < class) {
            return Some(oldest);
        }
        members.in_order().copied().find(untried)
    }

    /// Requests that go before a new one of this class and tenant, as far as classes and equal turns of tenants tell.
    pub(super) fn num_before(&self, class: u8, tenant: u64) -> usize {
        let (higher, same) = self.classes.split_at(index(class));
        let higher = higher.iter().map(|members| members.arrivals.len());
        higher.sum::<usize>() + same[0].num_before(tenant)
    }

    /// A request of this tenant was admitted for the first time; this is what it costs at once.
    pub(super) fn admitted(&mut self, tenant: u64, prompt_tokens: usize) {
        let before = self.service.get(&tenant).copied().unwrap_or(0);
        let cost = prompt_tokens as u64 * FRACTION;
        let others = self.classes.iter().map(|members| members.num_new.len());
        let share = cost / (1 + others.sum::<usize>() as u64);
        self.served = self.served.saturating_add(share).max(before);
        self.charge(tenant, cost);
    }

    /// A tenant's requests have generated this many tokens.
    pub(super) fn generated(&mut self, tenant: u64, tokens: usize) {
        self.charge(tenant, tokens as u64 * OUTPUT_WEIGHT * FRACTION);
    }

    fn charge(&mut self, tenant: u64, cost: u64) {
        let service = self.service.entry(tenant).or_insert(self.served);
        let before = *service;
        *service += cost;
        let after = *service;
        self.most_served = self.most_served.max(after);
        for members in &mut self.classes {
            if members.tenants.remove(&(before, tenant)) {
                members.tenants.insert((after, tenant));
            }
        }
    }

    /// A tenant who was away gets no credit for it, and comes after those who came before.
    fn lift(&mut self, tenant: u64) {
        if self.service.len() > self.most_tenants.max(MIN_TENANTS) {
            let (served, classes) = (self.served, &self.classes);
            self.service
                .retain(|&tenant, service| *service > served || waits(classes, tenant));
            self.most_tenants = 2 * self.service.len();
        }
        if !waits(&self.classes, tenant) {
            self.served += 1;
            let service = self.service.entry(tenant).or_default();
            *service = self.served.max(*service);
        }
    }

    /// In no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Task> {
        self.tasks.values_mut()
    }

    /// Everything, in order of arrival.
    pub(super) fn drain(&mut self) -> Vec<Task> {
        self.classes = Default::default();
        self.num_resumed = 0;
        let mut all: Vec<Task> = self.tasks.drain().map(|(_, task)| task).collect();
        all.sort_unstable_by_key(|task| task.arrival);
        all
    }
}

impl Class {
    fn in_order(&self) -> impl Iterator<Item = &RequestId> {
        let tenants = self.tenants.iter();
        let new = tenants.flat_map(|&(_, tenant)| self.of(tenant));
        self.resumed.values().chain(new)
    }

    fn num_before(&self, tenant: u64) -> usize {
        let own = self.num_new.get(&tenant).copied().unwrap_or(0);
        let others = self.num_new.len() - usize::from(own > 0);
        // Of every other one as many as of its own, and the one whose turn it is.
        let turns = own + others.saturating_mul(own + 1);
        self.resumed.len() + turns.min(self.new.len())
    }

    /// One that has not run before has gone.
    fn take_one(&mut self, tenant: u64) {
        if let Entry::Occupied(mut left) = self.num_new.entry(tenant) {
            *left.get_mut() -= 1;
            if *left.get() == 0 {
                left.remove();
            }
        }
    }

    fn of(&self, tenant: u64) -> impl Iterator<Item = &RequestId> {
        self.new
            .range((tenant, 0)..=(tenant, u64::MAX))
            .map(|(_, id)| id)
    }
}

fn waits(classes: &[Class], tenant: u64) -> bool {
    let mut classes = classes.iter();
    classes.any(|members| members.num_new.contains_key(&tenant))
}

fn index(class: u8) -> usize {
    usize::from(class.clamp(1, Scheduling::CLASSES)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::request;

    fn task(id: u64, class: u8, tenant: u64, submitted: u64) -> Task {
        let mut request = request(id, 10, 5);
        request.scheduling.class = class;
        request.scheduling.tenant = tenant;
        Task::new(request, Duration::from_secs(submitted), 0)
    }

    fn order(queue: &mut Queue, now: u64) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some(id) = queue.next(Duration::from_secs(now), &[]) {
            let tenant = queue.remove(id).unwrap().request.scheduling.tenant;
            queue.admitted(tenant, 10);
            order.push(id.0);
        }
        order
    }

    #[test]
    fn classes_come_in_order_and_age() {
        let mut queue = Queue::default();
        queue.push(task(1, 3, 0, 0));
        queue.push(task(2, 1, 0, 5));
        queue.push(task(3, 2, 0, 5));
        assert_eq!(order(&mut queue, 9), [2, 3, 1]);
        // After 20 s the third class is level with the first, and its request is older.
        queue.push(task(4, 3, 0, 10));
        queue.push(task(5, 1, 0, 30));
        assert_eq!(order(&mut queue, 30), [4, 5]);
    }

    #[test]
    fn tenants_take_turns_however_much_one_of_them_asks() {
        let mut queue = Queue::default();
        for id in 0..6 {
            queue.push(task(id, 3, 1, 0));
        }
        queue.push(task(6, 3, 2, 0));
        queue.push(task(7, 3, 2, 0));
        assert_eq!(order(&mut queue, 0), [0, 6, 1, 7, 2, 3, 4, 5]);
        // Tenant 2 was away meanwhile and has no claim on what it did not use.
        queue.push(task(8, 3, 1, 0));
        queue.push(task(9, 3, 2, 0));
        queue.push(task(10, 3, 2, 0));
        queue.push(task(11, 3, 2, 0));
        let order = order(&mut queue, 0);
        assert!(order.iter().position(|&id| id == 8) < Some(3), "{order:?}");
    }

    #[test]
    fn generated_tokens_count_twice() {
        let mut queue = Queue::default();
        queue.push(task(0, 3, 1, 0));
        queue.push(task(1, 3, 2, 0));
        queue.generated(1, 5);
        queue.admitted(2, 9);
        assert_eq!(order(&mut queue, 0), [1, 0]);
    }

    #[test]
    fn those_who_were_stopped_come_first_in_their_class() {
        let mut queue = Queue::default();
        queue.push(task(0, 3, 1, 0));
        let mut stopped = queue.remove(RequestId(0)).unwrap();
        stopped.started = Some(Duration::ZERO);
        queue.push(task(1, 3, 2, 0));
        queue.push(task(2, 1, 2, 0));
        queue.push_resumed(stopped);
        assert_eq!(queue.num_new(), 2);
        assert_eq!(order(&mut queue, 0), [2, 0, 1]);
    }

    #[test]
    fn tenants_that_have_gone_are_forgotten() {
        let mut queue = Queue::default();
        for id in 0..5000 {
            queue.push(task(id, 3, id, 0));
            order(&mut queue, 0);
        }
        assert!(
            queue.service.len() <= MIN_TENANTS + 2,
            "{}",
            queue.service.len()
        );
    }

    #[test]
    fn who_ages_takes_nobody_along() {
        let mut queue = Queue::default();
        queue.push(task(0, 5, 1, 0));
        queue.generated(1, 100);
        queue.push(task(1, 5, 2, 45));
        queue.push(task(2, 1, 3, 45));
        // After 40 s the first is level with the first class, and older.
        assert_eq!(order(&mut queue, 45), [0, 2, 1]);
    }

    #[test]
    fn of_tenants_served_alike_the_first_comes_first() {
        let mut queue = Queue::default();
        for id in 0..4 {
            queue.push(task(id, 3, 9 - id, 0));
        }
        assert_eq!(order(&mut queue, 0), [0, 1, 2, 3]);
    }

    /// Ten wait, and for each that is served another comes, of a tenant of its own.
    fn ever_new_tenants(count: u64, returns_at: u64) -> Queue {
        let mut queue = Queue::default();
        for id in 0..count {
            let mut tenant = id;
            if id >= 10 {
                let next = queue.next(Duration::ZERO, &[]).unwrap();
                let served = queue.remove(next).unwrap().request.scheduling.tenant;
                queue.admitted(served, 10);
                if id == returns_at {
                    tenant = served;
                }
            }
            queue.push(task(id, 3, tenant, 0));
        }
        queue
    }

    #[test]
    fn tenants_that_came_once_are_forgotten_while_others_wait() {
        let queue = ever_new_tenants(20_000, 0);
        assert!(
            queue.service.len() <= MIN_TENANTS + 2,
            "{}",
            queue.service.len()
        );
    }

    #[test]
    fn who_was_served_has_a_turn_among_ever_new_tenants() {
        let queue = ever_new_tenants(500, 400);
        assert!(queue.get(RequestId(400)).is_none(), "it still waits");
    }

    #[test]
    fn the_parked_are_passed_over_and_keep_their_places() {
        let mut queue = Queue::default();
        for id in 0..4 {
            queue.push(task(id, 3, id % 2, 0));
        }
        queue.park(RequestId(0));
        queue.park(RequestId(2));
        queue.park(RequestId(3));
        assert_eq!(queue.next(Duration::ZERO, &[]), Some(RequestId(1)));
        queue.remove(RequestId(2)).unwrap();
        queue.unpark();
        assert_eq!(queue.num_new(), 3);
        assert_eq!(order(&mut queue, 0), [0, 1, 3]);
    }
}
