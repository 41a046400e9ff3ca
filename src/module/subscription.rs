//! Subscription of another server's client: a session within the process, whose events go into the client's sink.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use jsonrpsee::core::{SubscriptionError, SubscriptionResult};
use jsonrpsee::types::{ErrorObjectOwned, Params};
use jsonrpsee::{PendingSubscriptionSink, SubscriptionSink};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

use super::{not_json, request};
use crate::delivery::{Compression, Pipe, Socket};
use crate::door::Pass;
use crate::jsonrpc::{INTERNAL_ERROR, error};
use crate::session::{self, Services};

/// The client's end of a session within the process.
struct Session(WebSocketStream<Pipe>);

/// Message of a session.
enum Received {
    /// JSON text.
    Text(tungstenite::Utf8Bytes),
    /// End of the session, with the reason of its close frame.
    End(String),
}

/// Answer to `eth_subscribe`.
#[derive(Deserialize)]
struct Answer {
    error: Option<ErrorObjectOwned>,
}

/// Notification, of which the sink needs the event alone.
#[derive(Deserialize)]
struct Notification<'a> {
    #[serde(borrow)]
    params: Payload<'a>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorObjectOwned>,
}

/// Serves one subscription until its client or the session ends it. The end of a session is an error notification with
/// the reason: the client has to subscribe again, from the last block that it knows.
pub(super) async fn serve(
    services: &Arc<Services>,
    pass: Pass,
    params: &Params<'_>,
    pending: PendingSubscriptionSink,
) -> SubscriptionResult {
    let mut session = Session::open(services, pass).await;
    let subscribed = session.subscribe(request("eth_subscribe", params)).await;
    if let Err(why) = subscribed {
        pending.reject(why).await;
        return Ok(());
    }
    let sink = pending.accept().await?;
    session.forward(&sink).await
}

impl Session {
    async fn open(services: &Arc<Services>, pass: Pass) -> Self {
        let (ours, theirs) = Pipe::pair();
        let served = session::serve(
            Socket::from(theirs),
            Bytes::new(),
            pass,
            Compression::None,
            services.clone(),
        );
        tokio::spawn(served);
        // The session bounds its own messages.
        let unbounded = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        Self(WebSocketStream::from_raw_socket(ours, Role::Client, Some(unbounded)).await)
    }

    async fn subscribe(&mut self, request: String) -> Result<(), ErrorObjectOwned> {
        let ended = |why: &str| error(INTERNAL_ERROR, why);
        self.0
            .send(Message::text(request))
            .await
            .map_err(|_| ended("the session has ended"))?;
        let Received::Text(text) = self.receive().await else {
            return Err(ended("the session has ended"));
        };
        let answer: Answer = serde_json::from_str(&text).map_err(|_| not_json())?;
        answer.error.map_or(Ok(()), Err)
    }

    async fn forward(&mut self, sink: &SubscriptionSink) -> SubscriptionResult {
        loop {
            let received = tokio::select! {
                () = sink.closed() => return Ok(()),
                received = self.receive() => received,
            };
            let text = match received {
                Received::Text(text) => text,
                Received::End(reason) => return Err(reason.into()),
            };
            let Notification { params } = serde_json::from_str(&text)?;
            if let Some(why) = params.error {
                return Err(SubscriptionError::from(why.message()));
            }
            if let Some(event) = params.result {
                // Waits while the client does not read; the session's queue is bounded.
                sink.send(event.to_owned()).await?;
            }
        }
    }

    async fn receive(&mut self) -> Received {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return Received::Text(text),
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(Some(close)))) => return Received::End(close.reason.to_string()),
                Some(Ok(Message::Close(None)) | Err(_)) | None => return Received::End("the session has ended".into()),
            }
        }
    }
}
