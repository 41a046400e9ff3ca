//! One HTTP request and its response: the request's id, and its record for the access log and for tracing.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderValue};
use http::{HeaderName, Method, Request, Response};
use hyper::body::Body as _;
use tracing::Span;

use super::response_body::Body;
use crate::door::Pass;
use crate::telemetry::request_id::{HEADER, RequestId};
use crate::telemetry::trace::TRACEPARENT;
use crate::telemetry::{Carrier, Recorder, RequestRecord, TraceParent};

/// Id and trace that a request names itself.
struct Claims {
    id: Option<RequestId>,
    caller: Option<TraceParent>,
}

impl Claims {
    fn of(headers: &HeaderMap) -> Self {
        let only = |name| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none())
        };
        Self {
            id: only(HEADER).and_then(|value| RequestId::parse(value.as_bytes())),
            caller: only(TRACEPARENT).and_then(|value| TraceParent::parse(value.as_bytes())),
        }
    }
}

/// Request on its way to its response.
pub(super) struct Exchange {
    carrier: Carrier,
    method: Method,
    /// Claims of a client that is not trusted, or not yet.
    claims: Option<Claims>,
    id: RequestId,
    record: Option<Arc<RequestRecord>>,
}

impl Exchange {
    /// Begins the exchange. The request's own id, and the trace that it belongs to, count if a trusted proxy sent it;
    /// otherwise once the client has proved its identity: a stranger must not choose the ids in the logs, nor have all
    /// its requests traced.
    pub(super) fn begin<B>(request: &Request<B>, carrier: Carrier, is_trusted: bool, recorder: &Recorder) -> Self {
        let claims = Claims::of(request.headers());
        let mut exchange = Self {
            carrier,
            method: request.method().clone(),
            claims: None,
            id: RequestId::random(),
            record: None,
        };
        if is_trusted {
            exchange.trust(claims, recorder);
        } else {
            exchange.record = recorder.begin(carrier, &exchange.id, None).map(Arc::new);
            exchange.claims = Some(claims);
        }
        exchange
    }

    fn trust(&mut self, claims: Claims, recorder: &Recorder) {
        if let Some(id) = claims.id {
            self.id = id;
        }
        self.record = recorder.begin(self.carrier, &self.id, claims.caller).map(Arc::new);
    }

    /// Continues with the identity of the client.
    pub(super) fn admitted(&mut self, pass: &Pass, recorder: &Recorder) {
        if pass.is_proven()
            && let Some(claims) = self.claims.take()
            && (claims.id.is_some() || claims.caller.is_some())
        {
            self.trust(claims, recorder);
        }
        if let Some(record) = &self.record {
            record.admitted(pass.account().label());
        }
    }

    /// Returns the record, if the request is logged or traced.
    pub(super) fn record(&self) -> Option<&Arc<RequestRecord>> {
        self.record.as_ref()
    }

    /// Returns the span of the request's log lines. An error's level: it is there whenever a line may be.
    pub(super) fn span(&self) -> Span {
        let trace_id = self.record.as_ref().and_then(|record| record.trace_id());
        tracing::error_span!("request", request_id = %self.id, trace_id)
    }

    /// Returns the exchange for the session that responds in place of the server.
    pub(super) fn handed_on(&self) -> Self {
        Self {
            carrier: self.carrier,
            method: self.method.clone(),
            claims: None,
            id: self.id.clone(),
            record: self.record.clone(),
        }
    }

    /// Returns the response with the request's id, and ends the record.
    pub(super) fn responded(self, mut response: Response<Body>, outcome: &'static str) -> Response<Body> {
        let bytes = response.body().size_hint().exact().unwrap_or(0);
        self.headed(&mut response, outcome, bytes);
        if let Some(record) = self.record {
            response.body_mut().record(record);
        }
        response
    }

    /// Adds the request's id to the head of a response with a body of this many bytes, and ends the record.
    pub(super) fn headed<T>(&self, response: &mut Response<T>, outcome: &'static str, bytes: u64) {
        if let Some(record) = &self.record {
            record.responded(self.method.as_str(), response.status().as_u16(), outcome, bytes);
        }
        self.name(response);
    }

    /// Adds the request's id to a response. The record of a handshake that succeeded goes on with the connection.
    pub(super) fn name<T>(&self, response: &mut Response<T>) {
        if let Ok(id) = HeaderValue::from_str(&self.id.to_string()) {
            response.headers_mut().insert(HeaderName::from_static(HEADER), id);
        }
    }
}
