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

/// Room for one read, in bytes, of each subscription as long as it lives: a head and most logs are shorter. The
/// library's 128 KiB would be 128 MiB for a thousand subscriptions, and be cleared before each read.
const READ_BYTES: usize = 4 << 10;

/// Framing of a session within the process, which bounds its own messages.
fn framing() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(None)
        .max_frame_size(None)
        .read_buffer_size(READ_BYTES)
}

impl Session {
    async fn open(services: &Arc<Services>, pass: Pass) -> Self {
        let (ours, theirs) = Pipe::pair();
        let served = session::serve(
            Socket::from(theirs),
            Bytes::new(),
            pass,
            (Compression::None, None),
            services.clone(),
            // The program's own server knows its requests.
            None,
        );
        tokio::spawn(served);
        Self(WebSocketStream::from_raw_socket(ours, Role::Client, Some(framing())).await)
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

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    /// Allocator's view of a subscription: its buffers, with the library's own settings, were 128 KiB each.
    #[test]
    fn a_subscription_has_no_large_buffer() {
        let framing = framing();
        assert!(framing.read_buffer_size <= 4 << 10, "{}", framing.read_buffer_size);
        assert_eq!((framing.max_message_size, framing.max_frame_size), (None, None));
    }

    #[tokio::test]
    async fn a_message_longer_than_its_buffer_is_read() {
        let (ours, theirs) = Pipe::pair();
        let text = "x".repeat(60_000);
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        let frame = [&[0x81, 126], &length[..], text.as_bytes()].concat();
        let mut session = Session(WebSocketStream::from_raw_socket(ours, Role::Client, Some(framing())).await);
        let socket = Socket::from(theirs);
        assert_eq!(socket.try_write(&[IoSlice::new(&frame)]).unwrap(), frame.len());
        let Received::Text(read) = session.receive().await else {
            panic!()
        };
        assert!(*read == *text);
    }
}
