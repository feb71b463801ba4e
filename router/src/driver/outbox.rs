//! Deliveries on their way to the text workers. The driver never waits for them to be taken: the workers may be waiting
//! for the driver's inbox.

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::event::Delivery;

/// With this many deliveries not taken no more plans are made.
const MAX_PENDING: usize = 1 << 16;

/// A bounded channel with a little patience.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) pending: Vec<Delivery>,
    deliveries: mpsc::Sender<Vec<Delivery>>,
    closed: bool,
}

impl Outbox {
    pub(super) fn new(deliveries: mpsc::Sender<Vec<Delivery>>) -> Self {
        Self {
            pending: Vec::new(),
            deliveries,
            closed: false,
        }
    }

    pub(super) fn is_clogged(&self) -> bool {
        self.pending.len() >= MAX_PENDING
    }

    /// Sends what is pending if the channel has room.
    pub(super) fn try_flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let closed = match self.deliveries.try_reserve() {
            Ok(permit) => {
                permit.send(std::mem::take(&mut self.pending));
                false
            }
            Err(error) => matches!(error, TrySendError::Closed(())),
        };
        if closed {
            self.close();
        }
    }

    /// Sends what is pending once there is room; waits for ever with nothing pending. Cancel safe.
    pub(super) async fn flush(&mut self) {
        if self.pending.is_empty() {
            return std::future::pending().await;
        }
        let closed = match self.deliveries.reserve().await {
            Ok(permit) => {
                permit.send(std::mem::take(&mut self.pending));
                false
            }
            Err(_) => true,
        };
        if closed {
            self.close();
        }
    }

    /// Nobody listens any more: the inbox is about to close too.
    fn close(&mut self) {
        self.pending.clear();
        if !self.closed {
            self.closed = true;
            tracing::debug!("the text workers have gone; deliveries are dropped");
        }
    }
}
