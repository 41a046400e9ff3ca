//! One client on a WebSocket or a Unix socket, from its first message to its end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt, Sink, SinkExt, Stream, StreamExt,
    future::{BoxFuture, ready},
    stream::FuturesUnordered,
};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::{mpsc, watch},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{Role, WebSocketConfig},
    },
};
use tokio_util::codec::Framed;

use super::{
    feed::{ClientId, Connection, NOTIFICATION_END, Outgoing},
    ipc::JsonCodec,
    node::SimulatedNode,
    stall::Gate,
};

/// geth's limit.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// Maximum number of a client's calls in a simulated delay; above it the client's next messages are not read.
const MAX_DELAYED_CALLS: usize = 16_384;
/// Maximum number of queued messages written between two flushes.
const WRITE_BATCH: usize = 256;

/// Receives the commands to cut all connections given after its creation. Created before the client can know that it is
/// connected, so that no later command is missed.
pub(super) type Cuts = watch::Receiver<u64>;

/// Runs a WebSocket after its handshake. `read` has the bytes received after the handshake.
pub(super) async fn serve_websocket(node: Arc<SimulatedNode>, cuts: Cuts, stream: TcpStream, read: Bytes) {
    let Ok(socket) = second_descriptor(&stream) else { return };
    let config = WebSocketConfig::default()
        // Small, since there may be thousands of clients.
        .read_buffer_size(8 << 10)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let stream = WebSocketStream::from_partially_read(stream, read.into(), Role::Server, Some(config)).await;
    let (sink, stream) = stream.split();
    let reader = stream.filter_map(|message| {
        ready(match message {
            Ok(Message::Text(text)) => Some(Ok(Bytes::from(text))),
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            // tungstenite answers pings and closes.
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    });
    let writer = sink.with(|text: String| ready(Ok::<_, tokio_tungstenite::tungstenite::Error>(Message::text(text))));
    if serve(&node, cuts, reader, writer).await == Ending::Cut {
        // Closing with a linger time of zero sends a reset.
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

/// Runs a connection on the Unix socket.
pub(super) async fn serve_ipc(node: Arc<SimulatedNode>, cuts: Cuts, stream: UnixStream) {
    let (writer, reader) = Framed::new(stream, JsonCodec::new(MAX_MESSAGE_BYTES)).split::<String>();
    serve(&node, cuts, reader, writer).await;
}

#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// Closed by the client or by the node's shutdown.
    Closed,
    /// Cut by command, or because the client read too slowly.
    Cut,
}

async fn serve<E>(
    node: &SimulatedNode,
    mut cuts: Cuts,
    reader: impl Stream<Item = Result<Bytes, E>>,
    writer: impl Sink<String>,
) -> Ending {
    let Connection { id, queue, overflow } = node.connect();
    let _registered = Registered { node, id };
    let overflowed = async {
        overflow.cancelled().await;
        // A stall hides even the cut.
        node.stall.gate().open().await;
    };
    tokio::select! {
        () = node.shutdown.cancelled() => Ending::Closed,
        _ = cuts.changed() => Ending::Cut,
        () = overflowed => Ending::Cut,
        () = read(node, id, reader) => Ending::Closed,
        () = write(queue, node.stall.gate(), writer) => Ending::Closed,
    }
}

/// Executes messages in order of arrival, each after the simulated delay.
async fn read<E>(node: &SimulatedNode, id: ClientId, reader: impl Stream<Item = Result<Bytes, E>>) {
    let mut reader = std::pin::pin!(reader);
    let mut gate = node.stall.gate();
    let mut delayed: FuturesUnordered<BoxFuture<'static, Bytes>> = FuturesUnordered::new();
    loop {
        gate.open().await;
        tokio::select! {
            biased;
            () = gate.shut() => {}
            Some(message) = delayed.next(), if !delayed.is_empty() => node.serve_client(id, &message),
            message = reader.next(), if delayed.len() < MAX_DELAYED_CALLS => {
                let Some(Ok(message)) = message else { return };
                let delay = node.lock().faults.delay_of(&message);
                match delay {
                    None => node.serve_client(id, &message),
                    Some(delay) => delayed.push(after(delay, message).boxed()),
                }
            }
        }
    }
}

async fn after(delay: Duration, message: Bytes) -> Bytes {
    tokio::time::sleep(delay).await;
    message
}

/// Writes queued messages until the socket fails.
async fn write(mut queue: mpsc::Receiver<Outgoing>, mut gate: Gate, writer: impl Sink<String>) {
    let mut writer = std::pin::pin!(writer);
    let mut batch = Vec::with_capacity(4);
    loop {
        if queue.recv_many(&mut batch, WRITE_BATCH).await == 0 {
            // The feed dropped the client; another branch of `serve` ends the session.
            return std::future::pending().await;
        }
        gate.open().await;
        for outgoing in batch.drain(..) {
            let (text, alone) = match outgoing {
                Outgoing::Answer(text) => (text, true),
                Outgoing::Notification { prefix, payload } => ([&prefix, &payload, NOTIFICATION_END].concat(), false),
            };
            if writer.feed(text).await.is_err() || (alone && writer.flush().await.is_err()) {
                return;
            }
        }
        if writer.flush().await.is_err() {
            return;
        }
    }
}

/// Removes the client from the feed when its session ends, in whatever way.
struct Registered<'a> {
    node: &'a SimulatedNode,
    id: ClientId,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.node.lock().feed.disconnect(self.id);
    }
}

/// Duplicates the descriptor of the socket, to set the linger time while the original is inside a stream.
fn second_descriptor(stream: &TcpStream) -> std::io::Result<socket2::Socket> {
    socket2::SockRef::from(stream).try_clone()
}
