//! Spans: identifiers, W3C trace context, sampling, and the bounded queue to the exporter.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::mpsc;

use super::ReasonLabel;

/// Name of the header that carries the context, in requests from clients and to nodes.
pub const TRACEPARENT: &str = "traceparent";

/// Most spans that wait for the exporter; a span has some 300 bytes.
const WAITING: usize = 16_384;

/// Id of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// Id of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl TraceId {
    fn random() -> Self {
        Self(NonZeroU128::new(fastrand::u128(..)).unwrap_or(NonZeroU128::MIN))
    }

    /// Returns the id as it is exported.
    #[must_use]
    pub fn bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

impl SpanId {
    fn random() -> Self {
        Self(NonZeroU64::new(fastrand::u64(..)).unwrap_or(NonZeroU64::MIN))
    }

    /// Returns the id as it is exported.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Position in a trace, as the header `traceparent` names it (W3C Trace Context, level 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Trace.
    pub trace: TraceId,
    /// Span whose child is begun.
    pub span: SpanId,
    /// `true` if the caller records its spans.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads a header: `VERSION-TRACE-SPAN-FLAGS` in lower-case hexadecimal. Later versions may go on after the flags.
    #[must_use]
    pub fn parse(header: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        let (version, trace) = (hex(text.get(..2)?)?, hex(text.get(3..35)?)?);
        let (span, flags) = (hex(text.get(36..52)?)?, hex(text.get(53..55)?)?);
        let dashes = [2, 35, 52].iter().all(|at| text.as_bytes()[*at] == b'-');
        let ends = match version {
            0 => text.len() == 55,
            0xff => false,
            _ => text.len() == 55 || text.as_bytes()[55] == b'-',
        };
        (dashes && ends).then_some(Self {
            trace: TraceId(NonZeroU128::new(trace)?),
            span: SpanId(NonZeroU64::new(u64::try_from(span).ok()?)?),
            is_sampled: flags & 1 == 1,
        })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

fn hex(text: &str) -> Option<u128> {
    let is_lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.bytes()
        .all(is_lower)
        .then(|| u128::from_str_radix(text, 16).ok())?
}

/// Role of a span, by its number in OTLP (`Span.SpanKind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within headwater.
    Internal = 1,
    /// Request of a client.
    Server = 2,
    /// Request to a node.
    Client = 3,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Text.
    Text(Box<str>),
    /// Whole number.
    Number(i64),
}

impl From<&str> for Attribute {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Attribute {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Box<str>> for Attribute {
    fn from(text: Box<str>) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Attribute {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<i64> for Attribute {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// Span that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Trace.
    pub trace: TraceId,
    /// The span itself.
    pub id: SpanId,
    /// Span of which this is a part; `None` at the root.
    pub parent: Option<SpanId>,
    /// Name.
    pub name: &'static str,
    /// Role.
    pub kind: SpanKind,
    /// Begin.
    pub begin: SystemTime,
    /// End.
    pub end: SystemTime,
    /// `true` if the work failed.
    pub is_error: bool,
    /// Attributes.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// Place of a span in its trace: what its children and the header to a node need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanPlace {
    /// Trace.
    pub trace: TraceId,
    /// The span itself.
    pub id: SpanId,
    /// Span of which this is a part; `None` at the root.
    pub parent: Option<SpanId>,
}

impl SpanPlace {
    /// Returns the place of a new part of this span.
    #[must_use]
    pub fn child(self) -> Self {
        Self {
            trace: self.trace,
            id: SpanId::random(),
            parent: Some(self.id),
        }
    }

    /// Returns the context for a request that this span makes.
    #[must_use]
    pub fn context(self) -> TraceParent {
        TraceParent {
            trace: self.trace,
            span: self.id,
            is_sampled: true,
        }
    }

    /// Returns the span that took place here.
    #[must_use]
    pub fn span(self, name: &'static str, kind: SpanKind, begin: SystemTime, end: SystemTime) -> Span {
        Span {
            trace: self.trace,
            id: self.id,
            parent: self.parent,
            name,
            kind,
            begin,
            // The clock of the system may go back.
            end: end.max(begin),
            is_error: false,
            attributes: Vec::new(),
        }
    }
}

/// Settings of tracing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Share of traces that are recorded where the caller has not decided, from 0 to 1.
    pub ratio: f64,
}

/// Spans that are not exported, by reason.
pub type SpansDropped = Family<ReasonLabel, Counter>;

/// Sampler, and the sending end of the queue of spans.
#[derive(Debug)]
pub struct Tracer {
    spans: mpsc::Sender<Span>,
    /// Traces whose lower 56 bits are below this are recorded, as by the samplers of OpenTelemetry: several processes
    /// with the same ratio record the same traces.
    threshold: u64,
    dropped: SpansDropped,
}

/// Number of values that decide about a trace.
const RANGE: u64 = 1 << 56;

impl Tracer {
    /// Creates a tracer, and the receiving end for the exporter.
    #[must_use]
    pub fn new(sampling: Sampling, dropped: SpansDropped) -> (Self, mpsc::Receiver<Span>) {
        let (spans, receiver) = mpsc::channel(WAITING);
        let tracer = Self {
            spans,
            threshold: (sampling.ratio.clamp(0.0, 1.0) * RANGE as f64) as u64,
            dropped,
        };
        (tracer, receiver)
    }

    /// Begins a span for a request: a part of the caller's trace if there is one and the caller records it, else a new
    /// trace with the probability of the ratio. `None` if it is not recorded.
    #[must_use]
    pub fn begin(&self, caller: Option<TraceParent>) -> Option<SpanPlace> {
        match caller {
            Some(caller) => caller.is_sampled.then(|| SpanPlace {
                trace: caller.trace,
                id: SpanId::random(),
                parent: Some(caller.span),
            }),
            None => {
                let trace = TraceId::random();
                let part = (trace.0.get() as u64) % RANGE;
                (part < self.threshold).then(|| SpanPlace {
                    trace,
                    id: SpanId::random(),
                    parent: None,
                })
            }
        }
    }

    /// Hands a span to the exporter; drops and counts it if too many wait. Never waits.
    pub fn end(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            self.dropped.get_or_create(&ReasonLabel { reason: "full" }).inc();
        }
    }
}

/// Returns the nanoseconds since 1970.
#[must_use]
pub fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification_is_read_and_written() {
        let read = TraceParent::parse(HEADER.as_bytes()).unwrap();
        assert_eq!(read.to_string(), HEADER);
        assert!(read.is_sampled);
        let later = HEADER.replacen("00", "cc", 1) + "-what-comes-later";
        assert_eq!(TraceParent::parse(later.as_bytes()), Some(read));
    }

    #[test]
    fn what_is_no_context_is_none() {
        let broken = [
            String::new(),
            HEADER.to_uppercase(),
            HEADER.replacen("00", "ff", 1),
            format!("{HEADER}-more"),
            HEADER.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            HEADER.replace("00f067aa0ba902b7", &"0".repeat(16)),
            HEADER.replace('-', "_"),
            HEADER[..54].to_owned(),
            HEADER.replace('4', "é"),
        ];
        for header in broken {
            assert_eq!(TraceParent::parse(header.as_bytes()), None, "{header}");
        }
    }

    #[test]
    fn the_caller_decides_else_the_ratio() {
        let tracer = |ratio| Tracer::new(Sampling { ratio }, SpansDropped::default()).0;
        let (none, all, half) = (tracer(0.0), tracer(1.0), tracer(0.5));
        let mut caller = TraceParent::parse(HEADER.as_bytes()).unwrap();
        let begun = none.begin(Some(caller)).unwrap();
        assert_eq!((begun.trace, begun.parent), (caller.trace, Some(caller.span)));
        caller.is_sampled = false;
        assert_eq!(all.begin(Some(caller)), None);
        let count = |tracer: &Tracer| (0..2000).filter(|_| tracer.begin(None).is_some()).count();
        assert_eq!((count(&none), count(&all)), (0, 2000));
        // Outside with a probability below 1e-19.
        assert!((800..1200).contains(&count(&half)));
    }

    #[test]
    fn a_span_that_finds_no_room_is_dropped_and_counted() {
        let dropped = SpansDropped::default();
        let (tracer, _receiver) = Tracer::new(Sampling { ratio: 1.0 }, dropped.clone());
        let place = tracer.begin(None).unwrap();
        let now = SystemTime::UNIX_EPOCH;
        for _ in 0..WAITING + 3 {
            tracer.end(place.span("call", SpanKind::Server, now, now));
        }
        assert_eq!(dropped.get_or_create(&ReasonLabel { reason: "full" }).get(), 3);
    }
}
