//! Collector of spans, over HTTP or gRPC.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use reqwest::header::{CONTENT_TYPE, HeaderMap, TE};
use url::Url;

use super::{OtlpSettings, Protocol, encode};

/// Time limit of one export.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Longest response that is read, in bytes: it holds two short fields.
const LONGEST: usize = 64 << 10;

/// Path of the service, as gRPC names it.
const SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Status of a gRPC response that succeeded.
const OK: &str = "0";

/// Statuses of gRPC after which an export may be repeated (OTLP specification, "Failures"): cancelled, deadline exceeded,
/// aborted, out of range, unavailable, data loss.
const TRANSIENT: [&str; 6] = ["1", "4", "10", "11", "14", "15"];

/// Reason why a batch was not exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    /// The same batch may succeed later.
    #[error("{0}")]
    Transient(String),
    /// The collector does not take this batch.
    #[error("{0}")]
    Refused(String),
}

/// Connection to a collector.
#[derive(Debug)]
pub(super) struct Collector {
    client: reqwest::Client,
    url: Url,
    protocol: Protocol,
}

impl Collector {
    /// Prepares the connection, which is made with the first export.
    ///
    /// # Errors
    /// The reason why there is no HTTP client.
    pub(super) fn new(settings: &OtlpSettings) -> Result<Self, reqwest::Error> {
        let mut tls = rustls::ClientConfig::clone(&settings.trust);
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIME_LIMIT);
        let builder = match settings.protocol {
            Protocol::Http => builder,
            Protocol::Grpc => {
                tls.alpn_protocols = vec![b"h2".to_vec()];
                builder.http2_prior_knowledge()
            }
        };
        let mut url = settings.endpoint.clone();
        let path = url.path().trim_end_matches('/').to_owned();
        match settings.protocol {
            Protocol::Grpc => url.set_path(&format!("{path}/{SERVICE}")),
            Protocol::Http if path.is_empty() => url.set_path("/v1/traces"),
            Protocol::Http => {}
        }
        Ok(Self {
            client: builder.tls_backend_preconfigured(tls).build()?,
            url,
            protocol: settings.protocol,
        })
    }

    /// Exports an encoded request; returns the number of spans that the collector did not take.
    pub(super) async fn export(&self, request: &[u8]) -> Result<u64, ExportError> {
        let post = self.client.post(self.url.clone());
        let post = match self.protocol {
            Protocol::Http => post
                .header(CONTENT_TYPE, "application/x-protobuf")
                .body(request.to_owned()),
            Protocol::Grpc => post
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers")
                .body(framed(request)),
        };
        // The address may hold a key: it stays out of the error.
        let failed = |error: reqwest::Error| ExportError::Transient(error.without_url().to_string());
        let response: http::Response<reqwest::Body> = post.send().await.map_err(failed)?.into();
        let (head, body) = response.into_parts();
        let unread = |error| ExportError::Transient(format!("the response cannot be read: {error}"));
        let body = Limited::new(body, LONGEST).collect().await.map_err(unread)?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = body.to_bytes();
        match head.status.as_u16() {
            200 => {}
            429 | 502..=504 => return Err(ExportError::Transient(format!("HTTP {}", head.status))),
            _ => return Err(ExportError::Refused(format!("HTTP {}", head.status))),
        }
        match self.protocol {
            Protocol::Http => Ok(encode::rejected(&body)),
            Protocol::Grpc => status(&head.headers, &trailers).map(|()| encode::rejected(unframed(&body))),
        }
    }
}

/// Returns a message in the frame of gRPC: not compressed, its length, and itself.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

/// Returns the message in a frame of gRPC; empty if it is compressed, or there is none.
fn unframed(frame: &[u8]) -> &[u8] {
    match frame {
        [0, _, _, _, _, message @ ..] => message,
        _ => &[],
    }
}

/// Checks the status of a gRPC response, which is in the trailers, or in the headers of a response without a body.
fn status(headers: &HeaderMap, trailers: &HeaderMap) -> Result<(), ExportError> {
    let text = |name| {
        let value = trailers.get(name).or_else(|| headers.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let (code, why) = (text("grpc-status"), text("grpc-message"));
    let failure = format!("gRPC status {code:?} {why}");
    match code {
        OK => Ok(()),
        code if TRANSIENT.contains(&code) => Err(ExportError::Transient(failure)),
        _ => Err(ExportError::Refused(failure)),
    }
}
