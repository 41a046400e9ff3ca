//! Address of a node.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

/// Address of a node, parsed.
#[derive(Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `ws://` or `wss://`.
    Ws(Url),
    /// `http://` or `https://`: heads are polled.
    Http(Url),
    /// Unix socket: a path, or `ipc://` or `unix://` with a path.
    Ipc(PathBuf),
}

/// Error for a text that is not a valid node address.
#[derive(Debug, thiserror::Error)]
#[error("{given:?} is not a valid node address: use ws://, wss://, http:// or https://, or the path of an IPC socket")]
pub struct BadEndpoint {
    given: String,
}

impl FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint { given: redact(text) };
        if let Some((scheme, rest)) = text.split_once("://") {
            if scheme == "ipc" || scheme == "unix" {
                return if rest.is_empty() {
                    Err(bad())
                } else {
                    Ok(Self::Ipc(rest.into()))
                };
            }
            let url = Url::parse(text).map_err(|_| bad())?;
            if url.host_str().is_none_or(str::is_empty) {
                return Err(bad());
            }
            return match scheme {
                "ws" | "wss" => Ok(Self::Ws(url)),
                "http" | "https" => Ok(Self::Http(url)),
                _ => Err(bad()),
            };
        }
        // A bare word is more likely a mistyped host than a socket in the working directory.
        if text.contains('/') || text.ends_with(".ipc") {
            Ok(Self::Ipc(text.into()))
        } else {
            Err(bad())
        }
    }
}

/// Shortens an address that failed to parse to scheme and host: the rest may contain a key.
fn redact(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            let host = host.split(['/', '?']).next().unwrap_or_default();
            format!("{scheme}://{host}")
        }
        None => text.to_owned(),
    }
}

/// Shows the address without user, password, path and query, which contain the keys of hosted nodes.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ws(url) | Self::Http(url) => {
                write!(f, "{}://{}", url.scheme(), url.host_str().unwrap_or_default())?;
                if let Some(port) = url.port() {
                    write!(f, ":{port}")?;
                }
                if url.path().len() > 1 || url.query().is_some() {
                    f.write_str("/…")?;
                }
                Ok(())
            }
            Self::Ipc(path) => write!(f, "ipc:{}", path.display()),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_and_shown_without_their_secrets() {
        let shown = |text: &str| {
            text.parse::<Endpoint>()
                .map(|e| e.to_string())
                .map_err(|e| e.to_string())
        };
        assert_eq!(shown("ws://127.0.0.1:8546"), Ok("ws://127.0.0.1:8546".into()));
        assert_eq!(
            shown("wss://user:pass@node.example/v3/KEY?k=KEY"),
            Ok("wss://node.example/…".into())
        );
        assert_eq!(shown("http://localhost:8545/"), Ok("http://localhost:8545".into()));
        assert_eq!(shown("/tmp/geth.ipc"), Ok("ipc:/tmp/geth.ipc".into()));
        assert_eq!(shown("ipc:///tmp/geth.ipc"), Ok("ipc:/tmp/geth.ipc".into()));
        for wrong in ["", "localhost", "ftp://x/KEY", "ws://", "wss://user:KEY@:bad"] {
            let error = shown(wrong).expect_err(wrong);
            assert!(!error.contains("KEY") && error.contains("ws://"), "{error}");
        }
    }
}
