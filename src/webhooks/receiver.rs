//! Receiver of a webhook: one signed request, and what its answer means.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use url::Url;

use super::hook::Answer;
use super::settings::HookSettings;
use super::signature::Secrets;
use super::target::{PublicResolver, check_host};

/// Longest body of a response that is read, in bytes: the connection of a longer one is not used again.
const LONGEST: usize = 64 << 10;

/// Time for the body of a response, which nobody needs.
const BODY_TIME: Duration = Duration::from_secs(1);

/// Longest error that is kept, in bytes.
const MAX_ERROR: usize = 300;

/// Outcome of a request.
#[derive(Clone, Debug)]
pub(super) struct Posted {
    pub(super) answer: Answer,
    /// The status, or the reason why there is none, without the URL: it may hold a key.
    pub(super) text: String,
}

/// Receiver of one webhook.
#[derive(Debug)]
pub(super) struct Receiver {
    client: reqwest::Client,
    url: Url,
    secrets: Secrets,
    allow_private: bool,
}

impl Receiver {
    /// Prepares the connection, which is made with the first request.
    ///
    /// # Errors
    /// The reason why there is no HTTP client.
    pub(super) fn new(settings: &HookSettings) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .http1_only()
            .pool_max_idle_per_host(1)
            .user_agent(concat!("headwater/", env!("CARGO_PKG_VERSION")))
            .timeout(settings.timeout)
            .tls_backend_preconfigured(rustls::ClientConfig::clone(&settings.trust));
        if !settings.allow_private {
            builder = builder.dns_resolver(Arc::new(PublicResolver));
        }
        Ok(Self {
            client: builder.build()?,
            url: settings.url.clone(),
            secrets: settings.secrets.clone(),
            allow_private: settings.allow_private,
        })
    }

    /// Posts a message. `now` is in seconds since 1970.
    pub(super) async fn post(&self, id: &str, body: String, now: u64) -> Posted {
        if !self.allow_private
            && let Err(why) = check_host(&self.url)
        {
            return failed(None, why.to_string());
        }
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", self.secrets.sign(id, now, body.as_bytes()));
        match request.body(body).send().await {
            Ok(response) => read(response).await,
            Err(why) => failed(None, reason(why)),
        }
    }
}

async fn read(response: reqwest::Response) -> Posted {
    let status = response.status();
    let text = format!("HTTP {status}");
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| wait(value.to_str().ok()?));
    // Read for the next request on the connection; the status alone counts.
    let (_, body) = http::Response::<reqwest::Body>::from(response).into_parts();
    drop(tokio::time::timeout(BODY_TIME, Limited::new(body, LONGEST).collect()).await);
    match status.as_u16() {
        200..=299 => Posted {
            answer: Answer::Accepted,
            text,
        },
        410 => Posted {
            answer: Answer::Gone,
            text,
        },
        300..=399 => failed(retry_after, format!("{text}: redirects are not followed")),
        _ => failed(retry_after, text),
    }
}

fn failed(retry_after: Option<Duration>, mut text: String) -> Posted {
    if text.len() > MAX_ERROR {
        text.truncate(text.floor_char_boundary(MAX_ERROR));
    }
    Posted {
        answer: Answer::Failed { retry_after },
        text,
    }
}

/// Returns the innermost reason of an error: the others say that a request failed.
fn reason(why: reqwest::Error) -> String {
    if why.is_timeout() {
        return "no answer within the time limit".to_owned();
    }
    let why = why.without_url();
    let mut innermost: &dyn std::error::Error = &why;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Reads `Retry-After`: seconds, or a date.
fn wait(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}
