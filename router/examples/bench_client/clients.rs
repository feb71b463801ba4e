//! Connections behind one epoll.

use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::Target;
use crate::connection::{Connection, Tally};

/// All clients.
pub(crate) struct Clients {
    epoll: Epoll,
    places: Vec<Option<Connection>>,
    free: Vec<usize>,
    events: Vec<EpollEvent>,
    buffer: Vec<u8>,
    stamped: bool,
}

impl Clients {
    pub(crate) fn new(target: &Target) -> nix::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            places: Vec::new(),
            free: Vec::new(),
            events: vec![EpollEvent::empty(); 256],
            buffer: vec![0; 64 << 10],
            stamped: target.stamped,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(crate) fn add(&mut self, mut connection: Connection) -> anyhow::Result<()> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let event = interest(connection.send().unwrap_or(false), place);
        self.epoll.add(&connection.stream, event)?;
        self.places[place] = Some(connection);
        Ok(())
    }

    /// Waits until something comes, at most until `until`, and reads it. Returns who has ended, a broken connection
    /// included.
    pub(crate) fn turn(
        &mut self,
        until: Instant,
        tally: &mut Tally,
    ) -> anyhow::Result<Vec<Connection>> {
        // Rounded up: a millisecond late costs less than a processor that spins.
        let left = until.saturating_duration_since(Instant::now());
        let millis = left.as_millis() + u128::from(!left.is_zero());
        let timeout = EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX);
        let count = self.epoll.wait(&mut self.events, timeout)?;
        let mut ended = Vec::new();
        for event in &self.events[..count] {
            let place = usize::try_from(event.data())?;
            let Some(connection) = self.places[place].as_mut() else {
                continue;
            };
            if event.events().contains(EpollFlags::EPOLLOUT) && connection.send().unwrap_or(true) {
                let mut event = interest(true, place);
                self.epoll.modify(&connection.stream, &mut event)?;
            }
            let is_over = connection.read(&mut self.buffer, self.stamped, tally);
            if is_over.unwrap_or(true) {
                ended.extend(self.places[place].take());
                self.free.push(place);
            }
        }
        Ok(ended)
    }
}

/// In room for a request that has not gone, and always in what comes.
fn interest(is_sent: bool, place: usize) -> EpollEvent {
    let flags = if is_sent {
        EpollFlags::EPOLLIN
    } else {
        EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT
    };
    EpollEvent::new(flags, place as u64)
}
