//! Export of spans: a request's way and a block's way, as a collector of OpenTelemetry receives them over HTTP and gRPC.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use headwater::config::typed;
use headwater::door::ApiKey;
use headwater::otlp::Protocol;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Proxy, Rig, eventually, node};
use crate::keys::allow;
use crate::wire::{FORWARDED, FORWARDED_ANSWER, http};

/// Messages of OTLP, with the numbers of opentelemetry-proto.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ExportRequest {
        #[prost(message, repeated, tag = "1")]
        pub resource_spans: Vec<ResourceSpans>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        pub resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub scope_spans: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ScopeSpans {
        #[prost(message, repeated, tag = "2")]
        pub spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub span_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        pub parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub name: String,
        #[prost(int32, tag = "6")]
        pub kind: i32,
        #[prost(fixed64, tag = "7")]
        pub begin: u64,
        #[prost(fixed64, tag = "8")]
        pub end: u64,
        #[prost(message, repeated, tag = "9")]
        pub attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "15")]
        pub status: Option<Status>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Status {
        #[prost(int32, tag = "3")]
        pub code: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct KeyValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct AnyValue {
        #[prost(oneof = "Value", tags = "1, 3")]
        pub value: Option<Value>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Value {
        #[prost(string, tag = "1")]
        Text(String),
        #[prost(int64, tag = "3")]
        Number(i64),
    }
}

use proto::Span;

/// Returns an attribute as text; empty if there is none.
fn attribute(attributes: &[proto::KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|own| own.key == key);
    match found.and_then(|own| own.value.clone()?.value) {
        Some(proto::Value::Text(text)) => text,
        Some(proto::Value::Number(number)) => number.to_string(),
        None => String::new(),
    }
}

/// A collector that keeps what it receives.
struct Collector {
    address: String,
    received: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// Listens; answers each export with this HTTP status.
    async fn start(protocol: Protocol, status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::<Mutex<Vec<Span>>>::default();
        let all = received.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let all = all.clone();
                let service = service_fn(move |request| export(request, protocol, status, all.clone()));
                tokio::spawn(async move {
                    let stream = TokioIo::new(stream);
                    match protocol {
                        Protocol::Http => {
                            hyper::server::conn::http1::Builder::new()
                                .serve_connection(stream, service)
                                .await
                        }
                        Protocol::Grpc => {
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                .serve_connection(stream, service)
                                .await
                        }
                    }
                });
            }
        });
        Self { address, received }
    }

    /// Exports everything, or what the caller asks for, to this collector.
    fn setting(&self, protocol: Protocol, sample: f64) -> impl Fn(&mut typed::Config) + use<> {
        let endpoint = self.address.clone();
        move |config| {
            config.tracing.endpoint.clone_from(&endpoint);
            (config.tracing.protocol, config.tracing.sample) = (protocol, sample);
        }
    }

    /// Waits until there is such a span, and returns it.
    async fn span(&self, what: &str, fits: impl Fn(&Span) -> bool) -> Span {
        eventually(what, async || self.received.lock().iter().any(&fits)).await;
        self.received.lock().iter().find(|span| fits(span)).unwrap().clone()
    }

    /// Waits until the span has parts of these names, and returns them.
    async fn parts(&self, of: &Span, names: &[&str]) -> HashMap<String, Span> {
        let parts = || {
            let received = self.received.lock();
            let parts = received.iter().filter(|span| span.parent_span_id == of.span_id);
            parts
                .map(|span| (span.name.clone(), span.clone()))
                .collect::<HashMap<_, _>>()
        };
        let what = format!("{names:?} of {}", of.name);
        eventually(&what, async || names.iter().all(|name| parts().contains_key(*name))).await;
        let parts = parts();
        for part in parts.values() {
            assert_eq!(part.trace_id, of.trace_id);
            assert!(part.begin <= part.end && part.end > 0, "{part:?}");
        }
        parts
    }
}

async fn export(
    request: Request<Incoming>,
    protocol: Protocol,
    status: u16,
    received: Arc<Mutex<Vec<Span>>>,
) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>, Infallible> {
    let (path, content_type) = match protocol {
        Protocol::Http => ("/v1/traces", "application/x-protobuf"),
        Protocol::Grpc => (
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            "application/grpc",
        ),
    };
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", path));
    assert_eq!(request.headers()["content-type"], content_type);
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let message = match protocol {
        Protocol::Http => &body[..],
        Protocol::Grpc => {
            assert_eq!(
                (body[0], body[1..5].to_vec()),
                (0, (body.len() as u32 - 5).to_be_bytes().to_vec())
            );
            &body[5..]
        }
    };
    let export = proto::ExportRequest::decode(message).unwrap();
    for resource in export.resource_spans {
        let of = resource.resource.unwrap().attributes;
        assert_eq!(attribute(&of, "service.name"), "headwater");
        assert_eq!(attribute(&of, "service.version"), env!("CARGO_PKG_VERSION"));
        for scope in resource.scope_spans {
            received.lock().extend(scope.spans);
        }
    }
    let body = match protocol {
        Protocol::Http => Full::new(Bytes::new()).boxed(),
        Protocol::Grpc => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let body = Full::new(Bytes::from_static(&[0; 5]));
            body.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()
        }
    };
    let response = Response::builder().status(status).header("content-type", content_type);
    Ok(response.body(body).unwrap())
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Relays connections to a node, and keeps what is sent to it.
async fn relay(to: std::net::SocketAddr) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let sent = Arc::<Mutex<Vec<u8>>>::default();
    let all = sent.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let all = all.clone();
            tokio::spawn(async move {
                let (mut from, mut back) = client.into_split();
                let (mut answers, mut node) = TcpStream::connect(to).await.unwrap().into_split();
                tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
                let mut buffer = vec![0; 4096];
                while let Ok(read @ 1..) = from.read(&mut buffer).await {
                    all.lock().extend_from_slice(&buffer[..read]);
                    if node.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (url, sent)
}

#[tokio::test]
async fn a_request_over_http_is_traced_from_its_caller_to_the_node() {
    let collector = Collector::start(Protocol::Http, 200).await;
    let (node, key) = (node().await, ApiKey::random());
    let (url, sent) = relay(node.address()).await;
    let proxy = Proxy::start(&[url], |config| {
        collector.setting(Protocol::Http, 0.0)(config);
        allow(config, "alice", &key, "");
    })
    .await;
    proxy.ready().await;
    let head = |key: &str| {
        format!("POST / HTTP/1.1\r\ncontent-type: application/json\r\ntraceparent: 00-{TRACE}-{PARENT}-01{key}")
    };
    // A stranger cannot have its requests traced.
    assert_eq!(http(proxy.address, &head(""), FORWARDED).await.body, FORWARDED_ANSWER);
    let of_key = format!("\r\nx-api-key: {}\r\nx-request-id: mine", key.reveal());
    assert_eq!(
        http(proxy.address, &head(&of_key), FORWARDED).await.body,
        FORWARDED_ANSWER
    );

    let request = collector.span("the request", |span| span.name == "http").await;
    assert_eq!(
        (hex(&request.trace_id), hex(&request.parent_span_id)),
        (TRACE.into(), PARENT.into())
    );
    assert_eq!(
        (request.kind, attribute(&request.attributes, "headwater.request_id")),
        (2, "mine".into())
    );
    let parts = collector.parts(&request, &["call", "write"]).await;
    let call = &parts["call"];
    for (key, expect) in [
        ("rpc.method", "eth_syncing"),
        ("headwater.answered_by", "node"),
        ("headwater.outcome", "result"),
        ("headwater.account", "key alice"),
    ] {
        assert_eq!(attribute(&call.attributes, key), expect, "{key}");
    }
    let parts = collector.parts(call, &["policy", "cache", "upstream"]).await;
    let upstream = &parts["upstream"];
    assert_eq!(upstream.kind, 3);
    let context = format!("traceparent: 00-{TRACE}-{}-01", hex(&upstream.span_id));
    let sent = String::from_utf8_lossy(&sent.lock()).to_lowercase();
    assert!(sent.contains(&context), "{context} in {sent}");
    assert_eq!(sent.matches("traceparent").count(), 1);
    let received = collector.received.lock();
    assert_eq!(received.iter().filter(|span| span.name == "http").count(), 1);
    let text = format!("{received:?}");
    assert!(!text.contains(key.reveal()));
}

#[tokio::test]
async fn calls_over_websocket_and_blocks_are_traced_over_grpc() {
    let collector = Collector::start(Protocol::Grpc, 200).await;
    let rig = Rig::with(collector.setting(Protocol::Grpc, 1.0)).await;
    let mut watcher = rig.watcher().await;
    rig.nothing_else(&mut watcher).await;
    let head = rig.control.head();
    watcher.call("eth_syncing", json!([])).await;

    let call = |method: &'static str| {
        move |span: &Span| span.name == "call" && attribute(&span.attributes, "rpc.method") == method
    };
    let syncing = collector.span("the call", call("eth_syncing")).await;
    assert_eq!((syncing.kind, syncing.parent_span_id.len()), (2, 0));
    collector
        .parts(&syncing, &["policy", "cache", "upstream", "write"])
        .await;
    let subscribed = collector.span("the subscription", call("eth_subscribe")).await;
    assert_eq!(attribute(&subscribed.attributes, "headwater.answered_by"), "headwater");
    collector.span("the handshake", |span| span.name == "handshake").await;

    let hash = head.hash().to_string();
    let of_head = |span: &Span| span.name == "block" && attribute(&span.attributes, "headwater.block.hash") == hash;
    let block = collector.span("the block", of_head).await;
    let parts = collector
        .parts(&block, &["publish", "match", "first_socket", "last_socket", "logs"])
        .await;
    let order = ["publish", "match", "first_socket", "last_socket"].map(|name| parts[name].begin);
    assert!(order.is_sorted(), "{order:?}");
    collector
        .parts(&parts["logs"], &["fetch", "match", "first_socket", "last_socket"])
        .await;
}

/// Spans that the collector refuses are lost, and counted; clients do not notice.
#[tokio::test]
async fn a_collector_that_refuses_costs_spans_and_nothing_else() {
    let collector = Collector::start(Protocol::Http, 400).await;
    let rig = Rig::with(collector.setting(Protocol::Http, 1.0)).await;
    let mut watcher = rig.watcher().await;
    rig.nothing_else(&mut watcher).await;
    assert_eq!(rig.post(FORWARDED).await, FORWARDED_ANSWER);
    eventually("spans are dropped", async || {
        rig.metric("headwater_spans_dropped_total{reason=\"refused\"}").await > 0.0
    })
    .await;
    rig.nothing_else(&mut watcher).await;
}

/// A collector that accepts connections and never answers fills the queue of spans; clients do not notice.
#[tokio::test]
async fn a_collector_that_never_answers_costs_spans_and_nothing_else() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let rig = Rig::with(|config| {
        (config.tracing.endpoint, config.tracing.sample) = (endpoint, 1.0);
        (config.limits.requests_per_second, config.limits.request_burst) = (1_000_000, 1_000_000);
    })
    .await;
    let mut watcher = rig.watcher().await;
    let batch = format!("[{}]", vec![crate::wire::CHAIN_ID; 1000].join(","));
    // Three spans for each call.
    for _ in 0..8 {
        assert!(rig.post(&batch).await.starts_with("[{"));
    }
    assert!(rig.metric("headwater_spans_dropped_total{reason=\"full\"}").await > 1000.0);
    rig.nothing_else(&mut watcher).await;
    assert_eq!(rig.post(FORWARDED).await, FORWARDED_ANSWER);
    let Rig { proxy, node: _node, .. } = rig;
    proxy.stop();
    proxy.ended().await.unwrap();
}
