//! WebSocket as the transport of a message: places in flight, room for long messages, and subscriptions.

use std::sync::Arc;

use super::intake::Transport;
use super::{LONG_MESSAGE, Services};
use crate::delivery::{ClientWriter, InFlight, Recipient};
use crate::door::{Pass, Reserved};
use crate::jsonrpc::{ErrorObjectOwned, Outcome, Request};
use crate::rpc::{Local, SubscriptionMethod};
use crate::shares::{Charge, Full};
use crate::subscription::Subscription;

/// Client's connection while one of its messages is taken in.
pub(super) struct WebSocket<'a> {
    pub(super) services: &'a Arc<Services>,
    pub(super) pass: &'a Pass,
    pub(super) writer: &'a Arc<ClientWriter>,
    /// Subscriptions of the connection.
    pub(super) subscriptions: &'a mut Vec<(Subscription, Reserved)>,
    pub(super) acquired: Acquired,
}

/// Resources that a message has acquired, kept until it is answered.
#[derive(Default)]
pub(super) struct Acquired {
    /// Place among the calls in flight of the connection.
    pub(super) place: Option<InFlight>,
    /// Charge for the message's bytes, if it is long.
    pub(super) room: Option<Charge>,
    /// Recipients of new subscriptions, whose events are released by the answer.
    pub(super) releases: Vec<Arc<Recipient>>,
}

impl Transport for WebSocket<'_> {
    fn charge_inbound(&mut self, bytes: usize) -> Result<(), Full> {
        if bytes >= LONG_MESSAGE {
            self.acquired.room = Some(self.services.inbound.charge(self.writer.owner(), bytes)?);
        }
        Ok(())
    }

    fn begin_call(&mut self, max: u32) -> bool {
        self.acquired.place = self.writer.begin_call(max);
        self.acquired.place.is_some()
    }

    fn begin_subscription(
        &mut self,
        method: SubscriptionMethod<'_>,
        request: &Request<'_>,
    ) -> Result<Local, ErrorObjectOwned> {
        self.subscribe(method, request)
    }

    fn end_subscription(&mut self, request: &Request<'_>) -> Outcome {
        self.unsubscribe(request)
    }
}
