//! WebSocket as the transport of a message: places in flight, room for long messages, and subscriptions.

use std::sync::Arc;

use super::intake::Transport;
use super::{LONG_MESSAGE, Offered, OwnCaller, Services, call_own};
use crate::delivery::{ClientWriter, Disclosure, InFlight, Kind, Recipient};
use crate::door::{Pass, Reserved};
use crate::extension::{Call, Client, Role, Streams};
use crate::jsonrpc::{ErrorObjectOwned, Outcome, Request, not_available};
use crate::rpc::{Local, SubscriptionMethod, id_argument};
use crate::shares::{Charge, Full};
use crate::subscription::Subscription;

/// Client's connection while one of its messages is taken in.
pub(super) struct WebSocket<'a> {
    pub(super) services: &'a Arc<Services>,
    pub(super) pass: &'a Pass,
    pub(super) writer: &'a Arc<ClientWriter>,
    /// Subscriptions of the connection.
    pub(super) subscriptions: &'a mut Vec<(Subscription, Reserved)>,
    /// Subscriptions of the connection to the embedding program.
    pub(super) streams: &'a mut Option<Box<Streams>>,
    /// `true` if positions of the subscriptions are kept.
    pub(super) has_session: bool,
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
    /// Permission of the client's tap to show the answer.
    pub(super) disclosure: Disclosure,
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

    fn call_own(&mut self, request: &Request<'_>) -> Result<Local, ErrorObjectOwned> {
        let caller = OwnCaller {
            services: self.services.clone(),
            account: self.pass.account().clone(),
            connection: Some(self.writer.id()),
            offered: Offered::WebSocket,
        };
        call_own(self.pass, request, caller)
    }

    fn call_extension(&mut self, role: Role, request: &Request<'_>) -> Result<Local, ErrorObjectOwned> {
        let extension = &self.services.extension;
        let connect = || Box::new(Streams::new(extension.connect()));
        let connection = self.streams.get_or_insert_with(connect).connection().clone();
        let call = Call {
            method: &request.method,
            params: request.params,
            client: Client::of(self.pass),
            connection: &connection,
        };
        match role {
            Role::Call => Ok(extension.call(&call)),
            Role::Unsubscribe => {
                // The module knows which of its methods ends which subscription, and by which spelling of the id.
                let ended = extension.call(&call);
                let id = request.args().and_then(|args| id_argument(&args)).ok().flatten();
                if let (Local::Now(outcome), Some(id), Some(streams)) = (&ended, id, &mut self.streams)
                    && *outcome == Outcome::TRUE
                {
                    streams.end(id, self.writer);
                    self.note_use();
                }
                Ok(ended)
            }
            Role::Subscribe => {
                if !self.pass.terms().rights.kinds.allow(Kind::Extension) {
                    self.services.count_refusal("kind");
                    return Err(not_available(&request.method));
                }
                self.check_count()?;
                let reserved = self.reserve(0)?;
                let streams = self.streams.get_or_insert_with(connect);
                let (recipient, outcome) =
                    streams.subscribe(extension, &call, self.writer, self.services.clock, reserved);
                self.acquired.releases.push(recipient);
                self.note_use();
                Ok(Local::Later(outcome))
            }
        }
    }
}
