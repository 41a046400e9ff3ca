//! A receiver of webhooks.

// docs/webhooks.md
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, StatusCode};
use axum::{Router, body::Bytes, extract::DefaultBodyLimit, routing::post};
use base64::prelude::{BASE64_STANDARD, Engine};
use ring::hmac;
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    data: &'a RawValue, // an array, or one object of a type of its own
}

/// Checks the signature and the age of a request; its id.
fn verified(key: &hmac::Key, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let header = |name| headers.get(name)?.to_str().ok();
    let (id, timestamp) = (header("webhook-id")?, header("webhook-timestamp")?);
    let sent = UNIX_EPOCH + Duration::from_secs(timestamp.parse::<u32>().ok()?.into());
    let age = SystemTime::now()
        .duration_since(sent)
        .unwrap_or_else(|ahead| ahead.duration());
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    let signatures = header("webhook-signature")?.split(' ');
    let mut signatures = signatures.filter_map(|one| BASE64_STANDARD.decode(one.strip_prefix("v1,")?).ok());
    let is_signed = signatures.any(|one| hmac::verify(key, &signed, &one).is_ok());
    (is_signed && age < Duration::from_secs(300)).then(|| id.to_owned())
}

pub async fn receive<T>(port: u16, secret: String, take: T) -> Result<(), Box<dyn Error>>
where
    T: FnMut(&str, &RawValue) + Send + 'static,
{
    let secret = secret.trim().trim_start_matches("whsec_");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64_STANDARD.decode(secret)?);
    let kept = Arc::new(Mutex::new((None, take))); // the id of the last batch; keep it with the events
    let accept = async move |headers: HeaderMap, body: Bytes| {
        let Some(id) = verified(&key, &headers, &body) else {
            return StatusCode::UNAUTHORIZED;
        };
        let Ok(batch) = serde_json::from_slice::<Batch<'_>>(&body) else {
            return StatusCode::BAD_REQUEST;
        };
        let (last, take) = &mut *kept.lock().expect("no panic in take");
        if last.as_ref() != Some(&id) {
            let events = serde_json::from_str(batch.data.get()).unwrap_or_else(|_| vec![batch.data]);
            events.into_iter().for_each(|event| take(batch.kind, event));
            *last = Some(id);
        }
        StatusCode::NO_CONTENT
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let router = Router::new().route("/headwater", post(accept));
    let router = router.layer(DefaultBodyLimit::max(64 << 20)); // one event may be longer than a batch
    Ok(axum::serve(listener, router).await?)
}
// end
