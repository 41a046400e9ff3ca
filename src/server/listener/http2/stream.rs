//! One stream of an HTTP/2 connection: its request and its response, or a WebSocket (RFC 8441).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body as HyperBody, Frame, SizeHint};
use tokio::time::Sleep;
use tracing::debug;

use super::super::HttpConnection;
use super::super::service::{InUse, respond};
use super::CHUNK;
use crate::delivery::Pipe;
use crate::server::handshake;
use crate::server::response_body::Body;

/// Bytes that the client has to take of a response within the write deadline, if there are as many.
const PROGRESS: usize = 16 << 10;

/// Serves one stream up to its end.
pub(super) async fn serve(
    request: Request<RecvStream>,
    mut responder: SendResponse<Bytes>,
    connection: Arc<HttpConnection>,
) {
    let _in_use = InUse::new(&connection);
    let method = request.method().clone();
    let upgrades = handshake::is_extended_connect(&request);
    let (head, body) = request.into_parts();
    let (body, incoming) = match upgrades {
        true => (None, Some(body)),
        false => (Some(body), None),
    };
    let length = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let request = Request::from_parts(head, RequestBody { stream: body, length });
    let responding = Box::pin(respond(request, upgrades, connection.clone()));
    let response = tokio::select! {
        response = responding => response,
        // As over HTTP/1.1 when the client disconnects.
        _ = poll_fn(|cx| responder.poll_reset(cx)) => return,
    };
    let (mut head, body) = response.into_parts();
    if head.headers.remove(CONNECTION).is_some() {
        connection.taken_over.notify_one();
    }
    // hyper adds it over HTTP/1.1.
    if let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now())) {
        head.headers.insert(DATE, now);
    }
    let has_upgraded = upgrades && head.status == StatusCode::OK;
    let length = body.size_hint().exact();
    if let Some(length) = length
        && head.status != StatusCode::NO_CONTENT
    {
        head.headers.insert(CONTENT_LENGTH, length.into());
    }
    let is_whole = method == Method::HEAD || length == Some(0);
    let sent = responder.send_response(Response::from_parts(head, ()), is_whole);
    let stream = match sent {
        Ok(_) if is_whole => return,
        Ok(stream) => stream,
        Err(why) => return debug!("http/2: {why}"),
    };
    let mut sending = Sending::new(stream, body, connection.settings().write_deadline);
    match incoming.filter(|_| has_upgraded) {
        None => poll_fn(|cx| sending.poll(cx)).await,
        Some(incoming) => {
            let mut receiving = Receiving::new(incoming);
            poll_fn(|cx| {
                if let Body::Stream(pipe) = &sending.body {
                    receiving.poll(pipe, cx);
                }
                sending.poll(cx)
            })
            .await;
        }
    }
}

/// Body of a request; its bytes are given back to the client's window as they are read.
struct RequestBody {
    /// `None` for a stream that becomes a WebSocket.
    stream: Option<RecvStream>,
    /// Length in bytes that the client announced, to which h2 keeps it.
    length: Option<u64>,
}

impl HyperBody for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(None);
        };
        let Some(data) = ready!(stream.poll_data(cx)) else {
            return Poll::Ready(None);
        };
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Bytes of a stream on their way to a session.
struct Receiving {
    stream: Option<RecvStream>,
    unsent: Bytes,
}

impl Receiving {
    fn new(stream: RecvStream) -> Self {
        let (stream, unsent) = (Some(stream), Bytes::new());
        Self { stream, unsent }
    }

    /// Hands bytes on until the session takes no more, or there are none. The client's window opens as they are taken.
    fn poll(&mut self, pipe: &Pipe, cx: &mut Context<'_>) {
        while let Some(stream) = &mut self.stream {
            if self.unsent.is_empty() {
                match stream.poll_data(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Some(Ok(data))) => self.unsent = data,
                    Poll::Ready(None | Some(Err(_))) => {
                        pipe.shut();
                        self.stream = None;
                    }
                }
                continue;
            }
            match pipe.try_write(&[IoSlice::new(&self.unsent)]) {
                Ok(taken) => {
                    self.unsent.advance(taken);
                    // Fails once the stream is closed, which reading finds.
                    drop(stream.flow_control().release_capacity(taken));
                }
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    if pipe.poll_writable(cx).is_pending() {
                        return;
                    }
                }
                Err(_) => self.stream = None,
            }
        }
    }
}

/// Body of a response on its way. h2 is given as much as the client's windows admit, the rest waits here.
struct Sending {
    stream: SendStream<Bytes>,
    body: Body,
    time_limit: Duration,
    /// Timer of the time limit, created when the body has to wait for the client.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Bytes taken since the timer was created.
    progress: usize,
}

impl Sending {
    fn new(stream: SendStream<Bytes>, body: Body, time_limit: Duration) -> Self {
        Self {
            stream,
            body,
            time_limit,
            blocked: None,
            progress: 0,
        }
    }

    /// Polls until the body is sent, or the stream has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let Poll::Ready(unread) = self.body.poll_unread(cx) else {
                self.blocked = None;
                return Poll::Pending;
            };
            if unread == 0 {
                return self.sent(Bytes::new(), true);
            }
            // Not while there is nothing to send: the window of the connection would be withheld from other streams.
            self.stream.reserve_capacity(unread.min(CHUNK));
            let capacity = match self.stream.capacity() {
                0 => match self.stream.poll_capacity(cx) {
                    Poll::Pending => return self.wait(cx),
                    Poll::Ready(Some(Ok(capacity))) => capacity,
                    Poll::Ready(None | Some(Err(_))) => return Poll::Ready(()),
                },
                capacity => capacity,
            };
            let data = self.body.take(capacity.min(unread).min(CHUNK));
            if data.is_empty() {
                continue;
            }
            self.progress += data.len();
            if self.progress >= PROGRESS {
                self.blocked = None;
            }
            let is_end = self.body.is_end_stream();
            if self.sent(data, is_end).is_ready() {
                return Poll::Ready(());
            }
        }
    }

    fn sent(&mut self, data: Bytes, is_end: bool) -> Poll<()> {
        match self.stream.send_data(data, is_end) {
            Ok(()) if !is_end => Poll::Pending,
            Ok(()) => Poll::Ready(()),
            Err(why) => {
                debug!("http/2: {why}");
                Poll::Ready(())
            }
        }
    }

    /// Waits for the client to open its window, up to the time limit; then the stream is reset.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let time_limit = self.time_limit;
        if self.blocked.is_none() {
            self.progress = 0;
        }
        let blocked = self
            .blocked
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(time_limit)));
        ready!(blocked.as_mut().poll(cx));
        self.stream.send_reset(Reason::CANCEL);
        Poll::Ready(())
    }
}
