//! Checks the settings about clients and builds the access policy from them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use super::{ConfigError, at_least, bad, bytes, non_zero, positive, typed};
use crate::door::{
    Auth, Beyond, CredentialSources, Development, Digest, Hosts, Kinds, Methods, Origins, Plan, Policy, Proxies,
    RefusalLimit, Rights, TokenSettings, Tokens, Weights,
};
use crate::method_pattern::Patterns;

/// Name of the plan of clients without one.
const DEFAULT: &str = "default";

/// Name of the plan of other headwaters.
const EDGE: &str = "edge";

/// Longest batch of another headwater.
const EDGE_BATCH: usize = 1_000;

/// Room for what another headwater writes around a client's parameters, in bytes.
const ENVELOPE: usize = 64 << 10;

/// Bytes per second. At a lower rate a single block would be too old before it is sent.
const LEAST_EGRESS: usize = 1024;

/// Checks the settings, and reads the files that they name.
pub(super) fn check(typed: &typed::Config) -> Result<Policy, ConfigError> {
    let (limits, server) = (&typed.limits, &typed.server);
    let everybodys = Rights {
        key: None,
        edge: false,
        plan: Arc::new(plan(limits, DEFAULT, "limits", &typed::Plan::default())?),
        methods: Methods {
            allowed: patterns("methods.allowed", &typed.methods.allowed)?,
            denied: patterns("methods.denied", &typed.methods.denied)?,
            beyond: Beyond::Settings {
                unknown: typed.methods.unknown,
                development: development(typed),
            },
        },
        weights: Arc::new(Weights::parse(&typed.methods.weights).map_err(|why| bad("methods.weights", &why))?),
        kinds: Kinds::ALL,
        passed: Arc::new(patterns("subscriptions.passthrough", &typed.subscriptions.passthrough)?),
        origins: None,
        addresses: None,
    };
    let anonymous = Arc::new(everybodys.clone());
    let mut plans: HashMap<Arc<str>, Arc<Rights>> = [(DEFAULT.into(), anonymous.clone())].into();
    for (name, own) in &typed.plans {
        let key = format!("plans.{name}");
        if name == DEFAULT {
            return Err(bad(
                &key,
                &"is the plan of [limits]: set its limits there, or choose another name",
            ));
        }
        let rights = Rights {
            plan: Arc::new(plan(limits, name, &key, own)?),
            ..everybodys.clone()
        };
        plans.insert(name.as_str().into(), Arc::new(rights));
    }
    let plan_of = |key: &str, name: &str| {
        let found = plans.get(name).ok_or_else(|| {
            let mut known: Vec<&str> = plans.keys().map(|name| &**name).collect();
            known.sort_unstable();
            bad(
                key,
                &format_args!("{name:?} is not a valid plan: use one of {}", known.join(", ")),
            )
        });
        found.map(|rights| rights.plan.clone())
    };
    let edge_plan = Arc::new(edge_plan(typed, plans.values().map(|rights| &*rights.plan))?);
    let mut keys = HashMap::new();
    for (name, own) in &typed.keys {
        let key = |field: &str| format!("keys.{name}.{field}");
        let digest: Digest = own.hash.parse().map_err(|why| bad(&key("hash"), &why))?;
        let mut rights = everybodys.clone();
        rights.key = Some(name.as_str().into());
        if let Some(plan) = &own.plan {
            rights.plan = plan_of(&key("plan"), plan)?;
        }
        if own.edge {
            if own.plan.is_some() {
                return Err(bad(
                    &key("plan"),
                    &"has no effect with edge = true: the edge limits its own clients; remove one of both",
                ));
            }
            (rights.edge, rights.plan) = (true, edge_plan.clone());
        }
        if let Some(methods) = &own.methods {
            rights.methods = Methods {
                allowed: patterns(&key("methods"), methods)?,
                ..Methods::default()
            };
        }
        if let Some(kinds) = &own.subscriptions {
            rights.kinds = Kinds::parse(kinds).map_err(|why| bad(&key("subscriptions"), &why))?;
        }
        rights.origins = own.origins.as_deref().map(Origins::new);
        let addresses = own.addresses.as_deref();
        rights.addresses = addresses.map(|all| networks(&key("addresses"), all)).transpose()?;
        if keys.insert(digest, Arc::new(rights)).is_some() {
            return Err(bad(
                &key("hash"),
                &"is also the hash of another key: create one with `headwater key`",
            ));
        }
    }
    plan_of("auth.jwt_plan", &typed.auth.jwt_plan)?;
    let path = |text| given(text).map(Path::new);
    let tokens = Tokens::read(&TokenSettings {
        secret_file: path(&typed.auth.jwt_secret_file),
        jwks_file: path(&typed.auth.jwks_file),
        issuer: given(&typed.auth.jwt_issuer),
        audience: given(&typed.auth.jwt_audience),
        plan: &typed.auth.jwt_plan,
    })
    .map_err(|why| ConfigError(why.to_string()))?;
    if typed.auth.required && keys.is_empty() && tokens.is_none() {
        return Err(bad(
            "auth.required",
            &"is true, but no keys or tokens are configured: add a key with `headwater key`, or set \
              auth.jwt_secret_file or auth.jwks_file",
        ));
    }
    if (typed.auth.required || !keys.is_empty() || tokens.is_some()) && typed.auth.accept.is_empty() {
        return Err(bad(
            "auth.accept",
            &"is empty: name at least one of bearer, header, path, query",
        ));
    }
    Ok(Policy {
        max_connections: at_least("limits.max_connections", limits.max_connections, 1)?,
        max_handshakes: at_least("server.max_handshakes", server.max_handshakes, 1)?,
        origins: Origins::new(&server.origins),
        hosts: Hosts::new(&server.hosts),
        subprotocols: subprotocols(&server.subprotocols)?,
        proxies: Proxies::new(
            networks("server.trusted_proxies", &server.trusted_proxies)?,
            server.forwarded_header,
        ),
        auth: Auth {
            required: typed.auth.required,
            ways: CredentialSources(typed.auth.accept.clone()),
            keys,
            tokens,
        },
        anonymous,
        plans,
    })
}

/// Returns `Off` behind a proxy: a local peer address does not prove a local client there.
fn development(typed: &typed::Config) -> Development {
    if typed.server.proxy_protocol || !typed.server.trusted_proxies.is_empty() {
        Development::Off
    } else {
        typed.methods.development
    }
}

fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn plan(limits: &typed::Limits, name: &str, section: &str, own: &typed::Plan) -> Result<Plan, ConfigError> {
    let key = |field: &str| format!("{section}.{field}");
    let some = |field: &str, value: usize| at_least(&key(field), value, 1);
    macro_rules! said {
        ($field:ident) => {
            own.$field.unwrap_or(limits.$field)
        };
    }
    let request_burst = non_zero(&key("request_burst"), said!(request_burst))?;
    let max_batch = some("max_batch", said!(max_batch))?;
    if max_batch > u32::from(request_burst) as usize {
        return Err(bad(
            &key("max_batch"),
            &format_args!(
                "is {max_batch}, above {section}.request_burst ({request_burst}): such a batch would always be refused"
            ),
        ));
    }
    let egress = said!(egress_bytes_per_second);
    if egress.as_u64() > 0 {
        bytes(&key("egress_bytes_per_second"), egress, LEAST_EGRESS)?;
    }
    Ok(Plan {
        name: name.into(),
        requests_per_second: non_zero(&key("requests_per_second"), said!(requests_per_second))?,
        request_burst,
        handshakes_per_minute: non_zero(&key("handshakes_per_minute"), said!(handshakes_per_minute))?,
        max_connections: some("max_connections_per_client", said!(max_connections_per_client))?,
        max_subscriptions: some("max_subscriptions", said!(max_subscriptions))?,
        max_subscriptions_per_client: some("max_subscriptions_per_client", said!(max_subscriptions_per_client))?,
        max_index_entries: some("max_index_entries", said!(max_index_entries))?,
        max_in_flight: u32::from(non_zero(&key("max_in_flight"), said!(max_in_flight))?),
        max_batch,
        max_message_bytes: bytes(&key("max_message_bytes"), said!(max_message_bytes), 1024)?,
        max_body_bytes: bytes(&key("max_body_bytes"), said!(max_body_bytes), 1024)?,
        egress_bytes_per_second: egress.as_u64(),
        max_queue_bytes: None,
        refusal_limit: RefusalLimit {
            refusals: limits.max_refusals,
            window: positive("limits.refusal_window", limits.refusal_window)?,
        },
    })
}

/// Returns the plan of another headwater: its clients are limited there, and its messages are as long as those of the
/// longest plan, and the envelope around them. It may have a quarter of all queued bytes, as one account may of all
/// else.
fn edge_plan<'a>(typed: &typed::Config, plans: impl Iterator<Item = &'a Plan>) -> Result<Plan, ConfigError> {
    let (mut longest, mut body) = (0, 0);
    for plan in plans {
        longest = longest.max(plan.max_message_bytes);
        body = body.max(plan.max_body_bytes);
    }
    let delivery = &typed.delivery;
    let all = bytes(
        "delivery.max_total_queue_bytes",
        delivery.max_total_queue_bytes,
        64 << 10,
    )?;
    Ok(Plan {
        name: EDGE.into(),
        max_batch: typed.limits.max_batch.max(EDGE_BATCH),
        max_message_bytes: longest.saturating_add(ENVELOPE),
        max_body_bytes: body.saturating_add(ENVELOPE),
        max_queue_bytes: Some(all / 4),
        ..Plan::without_limits()
    })
}

fn patterns(key: &str, texts: &[String]) -> Result<Patterns, ConfigError> {
    Patterns::parse(texts).map_err(|why| bad(key, &why))
}

/// Parses networks in CIDR notation or single addresses.
fn networks(key: &str, texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    let network = |text: &String| {
        let text = text.trim();
        let read = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        read.map_err(|_| {
            bad(
                key,
                &format_args!("{text:?} is not a valid network: use CIDR, as in 10.0.0.0/8 or fd00::/8"),
            )
        })
    };
    texts.iter().map(network).collect()
}

/// Checks that subprotocols are tokens of RFC 9110, as required in a header.
fn subprotocols(texts: &[String]) -> Result<Vec<String>, ConfigError> {
    let is_token = |text: &String| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !text.is_empty() && text.bytes().all(legal)
    };
    match texts.iter().find(|text| !is_token(text)) {
        Some(text) => Err(bad(
            "server.subprotocols",
            &format_args!("{text:?} is not a valid subprotocol: use a token of RFC 9110, such as jsonrpc"),
        )),
        None => Ok(texts.to_vec()),
    }
}

#[cfg(test)]
mod tests;
