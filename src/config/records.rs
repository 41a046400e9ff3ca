//! Checks of the settings of what is recorded of clients and blocks: the access log, and the spans for a collector.

use std::path::Path;

use url::Url;

use super::{ConfigError, bad, share, typed};
use crate::otlp::OtlpSettings;
use crate::telemetry::trace::Sampling;
use crate::telemetry::{AccessLogSettings, Destination};
use crate::tls;

pub(super) fn access_log(typed: &typed::Log) -> Result<Option<AccessLogSettings>, ConfigError> {
    let destination = match typed.access.as_str() {
        "" => return Ok(None),
        "stdout" => Destination::Stdout,
        "stderr" => Destination::Stderr,
        path => Destination::File(path.into()),
    };
    Ok(Some(AccessLogSettings {
        destination,
        sample: share("log.access_sample", typed.access_sample)?,
    }))
}

pub(super) fn tracing(typed: &typed::Tracing) -> Result<Option<OtlpSettings>, ConfigError> {
    if typed.endpoint.is_empty() {
        return Ok(None);
    }
    let endpoint = typed.endpoint.parse::<Url>().ok();
    let endpoint = endpoint.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let ca = (!typed.ca.is_empty()).then(|| Path::new(&typed.ca));
    Ok(Some(OtlpSettings {
        endpoint: endpoint.ok_or_else(|| {
            bad(
                "tracing.endpoint",
                &"is not the address of a collector: use http:// or https://, as in http://127.0.0.1:4318",
            )
        })?,
        protocol: typed.protocol,
        sampling: Sampling {
            ratio: share("tracing.sample", typed.sample)?,
        },
        service: typed.service.clone(),
        trust: tls::trust(ca).map_err(|why| bad("tracing.ca", &why))?,
    }))
}
