//! Browser pages that may connect (`Origin`), and host names that requests may use (`Host`).

use std::net::IpAddr;

use http::header::HeaderMap;

/// Browser pages that may connect. Requests without `Origin` do not come from browsers and pass, as in geth.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    rules: Vec<String>,
}

impl Origins {
    /// Reads rules in the form of geth's `--ws.origins`: `*`, or scheme, host and port, where scheme and port are
    /// optional. An IPv6 address is written in brackets, as in the origin that a browser sends.
    #[must_use]
    pub fn new(rules: &[String]) -> Self {
        Self {
            rules: rules.iter().map(|rule| rule.trim().to_ascii_lowercase()).collect(),
        }
    }

    /// Checks the `Origin` of a request; for POST too, since a page can reach a service on its reader's own machine.
    #[must_use]
    pub fn check(&self, headers: &HeaderMap) -> bool {
        super::page(headers).is_none_or(|origin| std::str::from_utf8(origin).is_ok_and(|origin| self.allow(origin)))
    }

    /// Checks if the pages of this origin may connect.
    #[must_use]
    pub fn allow(&self, origin: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        let origin = parts(&origin);
        self.rules.iter().any(|rule| {
            let rule_parts = parts(rule);
            rule == "*"
                || (rule_parts.host == origin.host
                    && rule_parts.scheme.is_none_or(|scheme| origin.scheme == Some(scheme))
                    && rule_parts.port.is_none_or(|port| origin.port == Some(port)))
        })
    }
}

struct Parts<'a> {
    scheme: Option<&'a str>,
    host: &'a str,
    port: Option<&'a str>,
}

fn parts(text: &str) -> Parts<'_> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text),
    };
    // The colons within the brackets of an IPv6 address do not begin a port.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()) => {
            (host, Some(port))
        }
        _ => (rest, None),
    };
    Parts { scheme, host, port }
}

/// Host names that requests may use, against DNS rebinding: a page that lets its own name resolve to our address.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// `None` for any name.
    names: Option<Vec<String>>,
}

impl Hosts {
    /// Reads names in the form of geth's `--http.vhosts`: `*` for any, else names without ports.
    #[must_use]
    pub fn new(names: &[String]) -> Self {
        let names: Vec<_> = names.iter().map(|name| name.trim().to_ascii_lowercase()).collect();
        Self {
            names: (!names.iter().any(|name| name == "*")).then_some(names),
        }
    }

    /// Checks the `Host` of a request. As in geth, an IP address always passes, since rebinding needs a name, and so
    /// does a request without `Host`.
    #[must_use]
    pub fn check(&self, host: Option<&[u8]>) -> bool {
        let Some(names) = &self.names else { return true };
        let Ok(host) = std::str::from_utf8(host.unwrap_or_default()) else {
            return false;
        };
        let host = host.trim().to_ascii_lowercase();
        let Parts { host: bare, .. } = parts(&host);
        let unbracketed = bare.trim_start_matches('[').trim_end_matches(']');
        bare.is_empty()
            || unbracketed.parse::<IpAddr>().is_ok()
            || host.parse::<IpAddr>().is_ok()
            || names.iter().any(|name| name == bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_as_geth_compares_them() {
        let allow = |rule: &str, origin: &str| Origins::new(&[rule.to_owned()]).allow(origin);
        assert!(allow("*", "https://any.example"));
        assert!(allow("*", "null"));
        assert!(allow("localhost", "http://localhost:3000"));
        assert!(allow("http://localhost", "http://LOCALHOST:3000"));
        assert!(!allow("http://localhost", "https://localhost"));
        assert!(allow("http://localhost:3000", "http://localhost:3000"));
        assert!(!allow("http://localhost:3000", "http://localhost:3001"));
        assert!(!allow("http://localhost", "http://localhost.evil.example"));
        assert!(!allow("http://localhost", "null"));
        for page in [
            "http://[::1]",
            "http://[::1]:80",
            "http://[::1]:3000",
            "HTTP://[::1]:3000",
        ] {
            assert!(allow("http://[::1]", page) && allow("[::1]", page), "{page}");
            assert!(
                !allow("http://localhost", page) && !allow("https://[::1]", page),
                "{page}"
            );
        }
        assert!(allow("http://[::1]:3000", "http://[::1]:3000"));
        for page in [
            "http://[::1]:3001",
            "http://[::1]",
            "http://[::2]:3000",
            "http://[::1]:3000.evil.example",
        ] {
            assert!(!allow("http://[::1]:3000", page), "{page}");
        }
        for page in [
            "http://[::2]",
            "http://[::1].evil.example",
            "http://[::1]@evil.example",
            "http://::1",
            "http://[::11]",
        ] {
            assert!(!allow("http://[::1]", page), "{page}");
        }
    }

    #[test]
    fn names_that_are_listed_and_addresses_pass() {
        let check = |names: &[&str], host: &str| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            Hosts::new(&names).check(Some(host.as_bytes()))
        };
        for host in [
            "localhost",
            "LocalHost:9546",
            "127.0.0.1:9546",
            "[::1]:9546",
            "::1",
            "10.1.2.3",
            "",
        ] {
            assert!(check(&["localhost"], host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9546",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[evil]",
        ] {
            assert!(!check(&["localhost"], host), "{host}");
            assert!(check(&["localhost", "*"], host), "{host}");
        }
        assert!(!Hosts::new(&[]).check(Some(b"\xff")));
        assert!(Hosts::new(&[]).check(None));
    }
}
