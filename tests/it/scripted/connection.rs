//! A connection of the scripted node: HTTP requests one after another, or a WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{Scripted, Socket};

impl Scripted {
    pub(super) async fn serve(&self, mut stream: TcpStream) {
        let mut start = vec![0; 16 << 10];
        let head = loop {
            let Ok(count @ 1..) = stream.peek(&mut start).await else {
                return;
            };
            let text = String::from_utf8_lossy(&start[..count]);
            if let Some((head, _)) = text.split_once("\r\n\r\n") {
                break head.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        self.0.state.lock().requests.push(head.clone());
        if head.to_ascii_lowercase().contains("upgrade: websocket") {
            self.serve_socket(stream).await;
        } else {
            while let Some((body, last)) = read_post(&mut stream).await {
                let request = serde_json::from_str(&body).unwrap();
                let Some(Message::Text(text)) = self.reply(request, None).await else {
                    return;
                };
                let response = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                    text.len()
                );
                if stream.write_all(response.as_bytes()).await.is_err() || last {
                    return;
                }
            }
        }
    }

    async fn serve_socket(&self, stream: TcpStream) {
        let is_full = {
            let state = self.0.state.lock();
            state.sockets.len() >= state.max_sockets
        };
        if is_full {
            return;
        }
        let Ok(websocket) = accept_async(stream).await else {
            return;
        };
        let (mut sink, mut source) = websocket.split();
        let (out, mut outgoing) = mpsc::unbounded_channel();
        let socket = {
            let mut state = self.0.state.lock();
            state.ids += 1;
            state.opened += 1;
            let (number, end) = (state.ids, CancellationToken::new());
            let socket = Socket { number, out, end };
            state.sockets.push(socket.clone());
            socket
        };
        loop {
            tokio::select! {
                biased;
                () = socket.end.cancelled() => break,
                message = outgoing.recv() => {
                    let message = message.expect("one sender is in `socket`");
                    if sink.send(message).await.is_err() { break }
                }
                message = source.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        let request = serde_json::from_str(&text).unwrap();
                        let (node, socket) = (self.clone(), socket.clone());
                        // Poll once here, so that answers keep the order of the requests unless one has to wait.
                        let mut replying = Box::pin(async move {
                            if let Some(reply) = node.reply(request, Some(&socket)).await {
                                let _ = socket.out.send(reply);
                            }
                        });
                        if poll!(&mut replying).is_pending() {
                            tokio::spawn(replying);
                        }
                    }
                    Some(Ok(_)) => {}
                    _ => break,
                },
            }
        }
        let mut state = self.0.state.lock();
        state.sockets.retain(|one| one.number != socket.number);
        state.subscriptions.retain(|one| one.socket.number != socket.number);
    }
}

/// Reads the next POST on the connection: its body, and `true` if the client closes the connection after it. `None`
/// at the end of the connection.
async fn read_post(stream: &mut TcpStream) -> Option<(String, bool)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let (_, length) = head.split_once("content-length:")?;
    let mut body = vec![0; length.lines().next()?.trim().parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some((String::from_utf8(body).unwrap(), head.contains("connection: close")))
}
