//! Records of requests and their calls, from which lines of the access log and spans are made.
//!
//! A record exists only for a request that is logged or traced; everything else passes on a `None`.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::access_log::{AccessLog, Carrier, Line, LineEvent};
use super::request_id::RequestId;
use super::trace::{Attribute, SpanKind, SpanPlace, TraceParent, Tracer};

/// Longest method name in a record, in bytes: clients choose it.
const METHOD: usize = 64;

/// Access log and tracer, as far as they are on.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    /// Access log.
    pub access_log: Option<Arc<AccessLog>>,
    /// Tracer.
    pub tracer: Option<Arc<Tracer>>,
}

/// Span that is open, with its tracer.
#[derive(Clone, Debug)]
struct Traced {
    tracer: Arc<Tracer>,
    place: SpanPlace,
}

impl Traced {
    fn end(
        &self,
        name: &'static str,
        kind: SpanKind,
        begin: SystemTime,
        attributes: Vec<(&'static str, Attribute)>,
        is_error: bool,
    ) {
        let mut span = self.place.span(name, kind, begin, SystemTime::now());
        (span.attributes, span.is_error) = (attributes, is_error);
        self.tracer.end(span);
    }

    fn child(&self) -> Self {
        Self {
            tracer: self.tracer.clone(),
            place: self.place.child(),
        }
    }
}

impl Recorder {
    /// Opens the file of the access log anew, as after a rotation.
    pub fn reopen(&self) {
        if let Some(log) = &self.access_log {
            log.reopen();
        }
    }

    /// Begins the record of an HTTP request, or of a WebSocket connection; `None` if it is neither logged nor traced.
    /// `caller` is the trace that a trusted client names.
    pub fn begin(&self, carrier: Carrier, id: &RequestId, caller: Option<TraceParent>) -> Option<RequestRecord> {
        let log = self.access_log.clone().filter(|log| log.takes());
        let place = self.tracer.as_ref().and_then(|tracer| tracer.begin(caller));
        // Each message of a connection decides for itself if it begins a trace.
        let tracer = self
            .tracer
            .clone()
            .filter(|_| carrier == Carrier::WebSocket || place.is_some());
        if log.is_none() && tracer.is_none() {
            return None;
        }
        Some(RequestRecord {
            carrier,
            id: id.clone(),
            account: OnceLock::new(),
            began: Instant::now(),
            began_at: SystemTime::now(),
            log,
            traced: tracer
                .clone()
                .zip(place)
                .map(|(tracer, place)| Traced { tracer, place }),
            tracer,
            caller,
            messages: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
        })
    }
}

/// Record of an HTTP request, or of a WebSocket connection.
#[derive(Debug)]
pub struct RequestRecord {
    carrier: Carrier,
    id: RequestId,
    account: OnceLock<Arc<str>>,
    began: Instant,
    began_at: SystemTime,
    /// `None` if the request is not logged.
    log: Option<Arc<AccessLog>>,
    /// Span of the HTTP request or of the handshake.
    traced: Option<Traced>,
    tracer: Option<Arc<Tracer>>,
    /// Trace that the client named.
    caller: Option<TraceParent>,
    /// Number of messages on the connection.
    messages: AtomicU64,
    /// Bytes read from the connection.
    bytes_in: AtomicU64,
}

impl RequestRecord {
    /// Names the account, once the client is admitted.
    pub fn admitted(&self, account: String) {
        self.account.get_or_init(|| account.into());
    }

    /// Checks if the request is traced.
    #[must_use]
    pub fn is_traced(&self) -> bool {
        self.traced.is_some()
    }

    /// Returns the trace id, if the request is traced.
    #[must_use]
    pub fn trace_id(&self) -> Option<String> {
        self.traced.as_ref().map(|traced| traced.place.trace.to_string())
    }

    /// Counts bytes read from the connection.
    pub fn read(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn line(&self, event: LineEvent, outcome: &'static str) -> Line {
        Line {
            time: SystemTime::now(),
            event,
            transport: self.carrier,
            request_id: self.id.clone(),
            message: None,
            trace_id: self.trace_id(),
            account: self.account.get().cloned(),
            method: None,
            outcome,
            code: None,
            by: None,
            upstream: None,
            duration_us: micros(self.began),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: 0,
        }
    }

    /// Ends the record of an HTTP request that got this response, or of a handshake that was refused.
    pub fn responded(&self, method: &str, status: u16, outcome: &'static str, bytes_out: u64) {
        if let Some(log) = &self.log {
            log.write(Line {
                method: Some(limited(method)),
                code: Some(status.into()),
                bytes_out,
                ..self.line(LineEvent::Http, outcome)
            });
        }
        if let Some(traced) = &self.traced {
            let attributes = vec![
                ("http.request.method", limited(method).into()),
                ("http.response.status_code", u64::from(status).into()),
                ("headwater.request_id", self.id.to_string().into()),
                ("headwater.outcome", outcome.into()),
            ];
            let name = match self.carrier {
                Carrier::Http => "http",
                Carrier::WebSocket => "handshake",
            };
            traced.end(name, SpanKind::Server, self.began_at, attributes, status >= 500);
        }
    }

    /// Records the begin of a WebSocket connection, whose handshake was answered with this status.
    pub fn opened(&self, status: u16) {
        if let Some(log) = &self.log {
            log.write(Line {
                code: Some(status.into()),
                ..self.line(LineEvent::Open, "accepted")
            });
        }
        if let Some(traced) = &self.traced {
            let attributes = vec![
                ("headwater.request_id", self.id.to_string().into()),
                (
                    "headwater.account",
                    self.account.get().map_or("", |account| account).into(),
                ),
            ];
            traced.end("handshake", SpanKind::Server, self.began_at, attributes, false);
        }
    }

    /// Records the end of a WebSocket connection: its reason, the close code that was sent, and the bytes written.
    pub fn closed(&self, reason: &'static str, code: Option<u16>, bytes_out: u64) {
        if let Some(log) = &self.log {
            log.write(Line {
                code: code.map(i64::from),
                bytes_out,
                ..self.line(LineEvent::Close, reason)
            });
        }
    }

    /// Records a part of the request, from `begin` until now.
    pub fn part(&self, name: &'static str, begin: SystemTime) {
        if let Some(traced) = &self.traced {
            traced.child().end(name, SpanKind::Internal, begin, Vec::new(), false);
        }
    }

    /// Counts the bytes of a body, and begins the record of its message.
    pub fn received(self: &Arc<Self>, bytes: usize) -> MessageRecord {
        self.read(bytes);
        self.message()
    }

    /// Counts a message of the client, and begins its record.
    pub fn message(self: &Arc<Self>) -> MessageRecord {
        let number = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
        let traced = match self.carrier {
            Carrier::Http => self.traced.clone(),
            Carrier::WebSocket => None,
        };
        MessageRecord {
            request: self.clone(),
            number: (self.carrier == Carrier::WebSocket).then_some(number),
            traced,
            began: Instant::now(),
            began_at: SystemTime::now(),
        }
    }
}

/// Record of a message, which holds a call or a batch of them.
#[derive(Clone, Debug)]
pub struct MessageRecord {
    request: Arc<RequestRecord>,
    number: Option<u64>,
    /// Span of the HTTP request.
    traced: Option<Traced>,
    began: Instant,
    began_at: SystemTime,
}

impl MessageRecord {
    /// Begins the record of a call once it is admitted and planned; `None` if it is neither logged nor traced.
    #[must_use]
    pub fn call(&self, method: &str, params: usize) -> Option<Arc<CallRecord>> {
        let own = |tracer: &Arc<Tracer>| {
            let place = tracer.begin(self.request.caller)?;
            let tracer = tracer.clone();
            Some(Traced { tracer, place })
        };
        let traced = match &self.traced {
            Some(request) => Some(request.child()),
            None if self.request.carrier == Carrier::WebSocket => self.request.tracer.as_ref().and_then(own),
            None => None,
        };
        if self.request.log.is_none() && traced.is_none() {
            return None;
        }
        if let Some(traced) = &traced {
            let policy = traced.child();
            policy.end("policy", SpanKind::Internal, self.began_at, Vec::new(), false);
        }
        Some(Arc::new(CallRecord {
            message: self.clone(),
            method: limited(method),
            params: params as u64,
            traced,
            source: Mutex::default(),
            is_done: AtomicBool::new(false),
        }))
    }
}

/// Source of a call's answer.
#[derive(Debug, Default)]
struct Source {
    by: Option<&'static str>,
    upstream: Option<Box<str>>,
}

/// Record of one call.
#[derive(Debug)]
pub struct CallRecord {
    message: MessageRecord,
    method: Box<str>,
    /// Length of the parameters.
    params: u64,
    traced: Option<Traced>,
    source: Mutex<Source>,
    is_done: AtomicBool,
}

/// Outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// Result.
    Result,
    /// Error with this code.
    Error(Option<i64>),
    /// Notification, which gets no answer.
    NoAnswer,
    /// The client left before the answer.
    Abandoned,
}

impl CallOutcome {
    fn label(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Error(_) => "error",
            Self::NoAnswer => "no_answer",
            Self::Abandoned => "abandoned",
        }
    }
}

impl CallRecord {
    /// Names the source of the answer, as in the metric `answered_calls`.
    pub fn answered_by(&self, by: &'static str) {
        self.source.lock().by = Some(by);
    }

    /// Begins an attempt at a node, which is named without secrets.
    #[must_use]
    pub fn asks(self: &Arc<Self>, upstream: &dyn fmt::Display) -> Attempt {
        let name: Box<str> = upstream.to_string().into();
        let mut source = self.source.lock();
        source.upstream = Some(name.clone());
        source.by.get_or_insert("node");
        drop(source);
        Attempt {
            traced: self.traced.as_ref().map(Traced::child),
            upstream: name,
            began_at: SystemTime::now(),
        }
    }

    /// Returns the begin of a part of the call, see [`Self::part`].
    #[must_use]
    pub fn began_part(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Records a part of the call, from `begin` until now.
    pub fn part(&self, name: &'static str, begin: SystemTime) {
        if let Some(traced) = &self.traced {
            traced.child().end(name, SpanKind::Internal, begin, Vec::new(), false);
        }
    }

    /// Returns the span of the call's log lines.
    #[must_use]
    pub fn log_span(&self) -> tracing::Span {
        tracing::error_span!("request", request_id = %self.message.request.id, trace_id = self.trace_id())
    }

    fn trace_id(&self) -> Option<String> {
        self.traced.as_ref().map(|traced| traced.place.trace.to_string())
    }

    /// Ends the record; only the first end counts. `bytes` is the length of the response.
    pub fn finish(&self, outcome: CallOutcome, bytes: usize) {
        if self.is_done.swap(true, Ordering::Relaxed) {
            return;
        }
        let request = &self.message.request;
        let source = std::mem::take(&mut *self.source.lock());
        let by = source.by.unwrap_or("headwater");
        let code = match outcome {
            CallOutcome::Error(code) => code,
            _ => None,
        };
        if let Some(traced) = &self.traced {
            let mut attributes = vec![
                ("rpc.system", "jsonrpc".into()),
                ("rpc.method", (*self.method).into()),
                ("headwater.answered_by", by.into()),
                ("headwater.outcome", outcome.label().into()),
                ("headwater.request_id", request.id.to_string().into()),
                ("headwater.response_bytes", (bytes as u64).into()),
            ];
            attributes.extend(code.map(|code| ("rpc.jsonrpc.error_code", code.into())));
            let account = request.account.get();
            attributes.extend(account.map(|account| ("headwater.account", (**account).into())));
            let kind = match request.carrier {
                Carrier::Http => SpanKind::Internal,
                Carrier::WebSocket => SpanKind::Server,
            };
            let is_error = matches!(outcome, CallOutcome::Error(_));
            traced.end("call", kind, self.message.began_at, attributes, is_error);
        }
        if let Some(log) = &request.log {
            log.write(Line {
                message: self.message.number,
                trace_id: self.trace_id(),
                method: Some(self.method.clone()),
                code,
                by: Some(by),
                upstream: source.upstream,
                duration_us: micros(self.message.began),
                bytes_in: self.params,
                bytes_out: bytes as u64,
                ..request.line(LineEvent::Call, outcome.label())
            });
        }
    }
}

/// A call whose future was dropped.
impl Drop for CallRecord {
    fn drop(&mut self) {
        self.finish(CallOutcome::Abandoned, 0);
    }
}

/// Attempt of a call at one node.
#[derive(Debug)]
pub struct Attempt {
    traced: Option<Traced>,
    upstream: Box<str>,
    began_at: SystemTime,
}

impl Attempt {
    /// Returns the context for the request to the node.
    #[must_use]
    pub fn context(&self) -> Option<TraceParent> {
        self.traced.as_ref().map(|traced| traced.place.context())
    }

    /// Ends the attempt with this outcome.
    pub fn end(self, outcome: &'static str) {
        if let Some(traced) = self.traced {
            let attributes = vec![
                ("headwater.upstream", (*self.upstream).into()),
                ("headwater.outcome", outcome.into()),
            ];
            traced.end(
                "upstream",
                SpanKind::Client,
                self.began_at,
                attributes,
                outcome != "result",
            );
        }
    }
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Returns the beginning of a name that a client chose.
fn limited(name: &str) -> Box<str> {
    name.get(..name.floor_char_boundary(METHOD)).unwrap_or_default().into()
}
