//! An echo server for Autobahn's fuzzing client, built from the parts of real sessions: the handshake check and the
//! negotiation of compression, the reader, the inflater and the client writer. The interpretation of messages is left
//! out: every message is returned unchanged.
//!
//! The server prints its port and runs until it is killed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater::clock::Clock;
use headwater::delivery::{
    Answered, ClientWriter, CloseReason, Compression, Disclosure, Phase, Socket, WriterLimits, WriterShared, frame,
};
use headwater::server::{agree_on_extension, check_upgrade};
use headwater::session::{ClientFrame, Form, MessageReader};
use headwater::telemetry::Metrics;
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Maximum message size in bytes: twice Autobahn's largest message.
const MAX_MESSAGE: usize = 32 << 20;

/// Limits beyond anything that Autobahn leaves unread.
const LIMITS: WriterLimits = WriterLimits {
    max_bytes: 256 << 20,
    max_total_bytes: 256 << 20,
    max_age: Duration::MAX,
    holdoff: Duration::ZERO,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    // `run.py` reads this one line.
    #[expect(clippy::print_stdout)]
    {
        println!("{}", listener.local_addr()?.port());
    }
    let shared = WriterShared::new(LIMITS, Clock::start(), &Metrics::new().0);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, shared.clone()));
    }
}

/// Serves HTTP until the connection is upgraded.
async fn serve(stream: TcpStream, shared: Arc<WriterShared>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let service = service_fn(|request| respond(request, shared.clone()));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    Ok(connection.with_upgrades().await?)
}

async fn respond(request: Request<Incoming>, shared: Arc<WriterShared>) -> anyhow::Result<Response<Empty<Bytes>>> {
    let Ok(accept) = check_upgrade(&request) else {
        let mut refusal = Response::new(Empty::new());
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(refusal);
    };
    let agreed = agree_on_extension(request.headers());
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let parts = upgrade.await?.downcast::<TokioIo<TcpStream>>();
        let parts = parts.map_err(|_| anyhow::anyhow!("not the socket that was accepted"))?;
        let socket = Socket::from(parts.io.into_inner());
        let compression = agreed.map_or(Compression::None, |agreed| agreed.compression);
        Echo::new(socket, &parts.read_buf, compression, shared).run().await;
        anyhow::Ok(())
    });
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept.parse()?);
    if let Some(agreed) = agreed {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(agreed.answer));
    }
    Ok(response)
}

/// A session as in `headwater::session`, without interpretation of messages.
struct Echo {
    outbox: Arc<ClientWriter>,
    reader: MessageReader,
    /// `true` after the client has violated the protocol: further input is discarded.
    deaf: bool,
}

impl Echo {
    fn new(socket: Socket, early: &[u8], compression: Compression, shared: Arc<WriterShared>) -> Self {
        let mut reader = MessageReader::new(MAX_MESSAGE, compression != Compression::None);
        reader.buffer().extend_from_slice(early);
        Self {
            outbox: ClientWriter::new(socket, compression, Arc::default(), shared),
            reader,
            deaf: false,
        }
    }

    async fn run(mut self) {
        self.take_messages();
        loop {
            let waits = self.outbox.waits();
            if waits.over.is_some() {
                break;
            }
            let socket = self.outbox.socket();
            let read = tokio::select! {
                () = std::future::poll_fn(|cx| self.outbox.poll_changed(cx)) => Ok(()),
                readable = std::future::poll_fn(|cx| socket.poll_readable(cx)) => readable.and_then(|()| self.read()),
                writable = std::future::poll_fn(|cx| socket.poll_writable(cx)), if waits.writable => {
                    self.outbox.flush();
                    writable
                }
            };
            if read.is_err() {
                break;
            }
        }
        self.outbox.socket().shut();
        self.outbox.socket().discard();
    }

    fn read(&mut self) -> io::Result<()> {
        let buffer = self.reader.buffer();
        buffer.reserve(64 << 10);
        match self.outbox.socket().try_read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => self.take_messages(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        self.reader.rest();
        Ok(())
    }

    fn take_messages(&mut self) {
        while !self.deaf {
            let is_open = self.outbox.phase() == Phase::Open;
            match self.reader.next_inbound() {
                Ok(None) => return,
                Ok(Some(ClientFrame::Close(code))) => self.outbox.peer_closed(code),
                Ok(Some(ClientFrame::Ping(payload))) => {
                    self.outbox.control(frame::control(frame::Opcode::Pong, &payload));
                }
                Ok(Some(ClientFrame::Message(form, message))) if is_open => self.echo(form, &message),
                Ok(Some(ClientFrame::DeflatedMessage(message))) if is_open => {
                    match message.inflate(MAX_MESSAGE, || Ok::<(), CloseReason>(())) {
                        Ok(inflated) => self.echo(message.form(), &inflated.into()),
                        Err(Ok(reason) | Err(reason)) => self.violated(reason),
                    }
                }
                Ok(Some(ClientFrame::Message(..) | ClientFrame::DeflatedMessage(_) | ClientFrame::Pong(_))) => {}
                Err(reason) => self.violated(reason),
            }
        }
        self.reader.buffer().clear();
    }

    fn violated(&mut self, reason: CloseReason) {
        self.deaf = true;
        self.outbox.close(reason);
    }

    fn echo(&self, form: Form, message: &Bytes) {
        let mut pieces = self.outbox.text(std::slice::from_ref(message), Disclosure::default());
        if form == Form::Binary
            && let Some(first) = pieces.first_mut()
        {
            // Sessions send only text frames; the opcode of binary frames is one higher.
            let mut binary = first.to_vec();
            binary[0] += 1;
            *first = binary.into();
        }
        if let Answered::NoRoom(_) = self.outbox.answer(pieces, Vec::new()) {
            self.outbox.close(CloseReason::SlowConsumer);
        }
    }
}
