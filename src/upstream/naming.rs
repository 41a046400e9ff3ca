//! Names of the methods that begin and end subscriptions, and of their notifications.
//!
//! geth has one pair for each namespace, `x_subscribe` and `x_unsubscribe`, whose first parameter names the kind.
//! jsonrpsee (reth, and Substrate before it) gives each kind its own pair: `x_subscribeKind` and `x_unsubscribeKind`.

/// A method that begins or ends a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionMethod<'a> {
    /// `<namespace>_subscribe`. geth checks the suffix, and takes the part before the first `_` as the namespace
    /// (`rpc/json.go`): `eth_a_subscribe` belongs to `eth`.
    Subscribe(&'a str),
    /// `<namespace>_subscribe<Kind>`.
    SubscribeKind(&'a str),
    /// `<namespace>_unsubscribe` or `<namespace>_unsubscribe<Kind>`.
    Unsubscribe,
    /// Method that begins or ends a subscription, judging by its name, but whose counterpart cannot be derived from
    /// the name.
    Unpaired,
}

/// Methods that begin a subscription without saying so in their names (Substrate, under Moonbeam and other EVM
/// chains).
const STREAMS: &[&str] = &[
    "author_submitAndWatchExtrinsic",
    "chainHead_v1_follow",
    "chainHead_unstable_follow",
    "transactionWatch_v1_submitAndWatch",
    "transactionWatch_unstable_submitAndWatch",
];

const SUBSCRIBE: &str = "subscribe";
const UNSUBSCRIBE: &str = "unsubscribe";
const SUBSCRIPTION: &str = "subscription";

impl<'a> SubscriptionMethod<'a> {
    /// Classifies a method by its name; `None` for a method that only answers.
    #[must_use]
    pub fn of(method: &'a str) -> Option<Self> {
        // Every form except those of `STREAMS` contains the word; most methods do not.
        let mut words = method.as_bytes().windows(SUBSCRIBE.len());
        if !words.any(|word| word.eq_ignore_ascii_case(SUBSCRIBE.as_bytes())) {
            return STREAMS.contains(&method).then_some(Self::Unpaired);
        }
        let namespace = method.split_once('_').map(|(namespace, _)| namespace);
        if let Some(namespace) = namespace {
            match method.rsplit_once('_') {
                Some((_, SUBSCRIBE)) => return Some(Self::Subscribe(namespace)),
                Some((_, UNSUBSCRIBE)) => return Some(Self::Unsubscribe),
                _ => {}
            }
            if !namespace.is_empty() {
                if word(method, SUBSCRIBE).is_some() {
                    return Some(Self::SubscribeKind(namespace));
                }
                if word(method, UNSUBSCRIBE).is_some() {
                    return Some(Self::Unsubscribe);
                }
            }
        }
        (subscribes(method) || STREAMS.contains(&method)).then_some(Self::Unpaired)
    }
}

/// Returns the method that ends a subscription which `method` begins.
pub(super) fn ended_by(method: &str) -> String {
    match word(method, SUBSCRIBE) {
        Some(at) => format!("{}un{}", &method[..at], &method[at..]),
        None => method.to_owned(),
    }
}

/// Returns the methods that may end a subscription of which only the notification's method is known, the likeliest
/// first.
pub(super) fn may_end(notification: &str) -> Vec<String> {
    let namespace = match notification.split_once('_') {
        Some((namespace, _)) if !namespace.is_empty() => namespace,
        _ => "eth",
    };
    let of_kind = [SUBSCRIPTION, SUBSCRIBE].into_iter().find_map(|begins| {
        let at = word(notification, begins)?;
        let kind = &notification[at + begins.len()..];
        (!kind.is_empty()).then(|| format!("{}{UNSUBSCRIBE}{kind}", &notification[..at]))
    });
    of_kind
        .into_iter()
        .chain([format!("{namespace}_{UNSUBSCRIBE}")])
        .collect()
}

/// Returns the byte offset of this word after a `_`. A small letter after the word makes it another one
/// (`x_subscribers`).
fn word(name: &str, word: &str) -> Option<usize> {
    let mut found = name.match_indices(word).map(|(at, _)| at);
    found.find(|&at| name[..at].ends_with('_') && ends_word(&name[at + word.len()..]))
}

fn ends_word(rest: &str) -> bool {
    !rest.starts_with(|next: char| next.is_ascii_lowercase())
}

/// Checks if `subscribe` or `unsubscribe` is a word anywhere in the name (`logsSubscribe`).
fn subscribes(name: &str) -> bool {
    let small = name.to_ascii_lowercase();
    small.match_indices(SUBSCRIBE).any(|(at, _)| {
        let begins = if small[..at].ends_with("un") { at - 2 } else { at };
        let before = name[..begins].chars().next_back();
        let is_capital = name[begins..].starts_with(|first: char| first.is_ascii_uppercase());
        let starts = before.is_none_or(|before| !before.is_ascii_alphabetic() || is_capital);
        starts && ends_word(&name[at + SUBSCRIBE.len()..])
    })
}

#[cfg(test)]
mod tests {
    use super::SubscriptionMethod::{Subscribe, SubscribeKind, Unpaired, Unsubscribe};
    use super::*;

    #[test]
    fn what_a_name_says() {
        for (method, says) in [
            ("eth_subscribe", Some(Subscribe("eth"))),
            ("eth_a_subscribe", Some(Subscribe("eth"))),
            ("parity_subscribe", Some(Subscribe("parity"))),
            ("_subscribe", Some(Subscribe(""))),
            ("eth_unsubscribe", Some(Unsubscribe)),
            ("reth_subscribeChainNotifications", Some(SubscribeKind("reth"))),
            ("reth_subscribePersistedBlock", Some(SubscribeKind("reth"))),
            ("reth_unsubscribePersistedBlock", Some(Unsubscribe)),
            ("eth_subscribeBundles", Some(SubscribeKind("eth"))),
            ("chain_subscribe_newHead", Some(SubscribeKind("chain"))),
            ("chain_unsubscribe_newHead", Some(Unsubscribe)),
            ("a_b_subscribe2", Some(SubscribeKind("a"))),
            ("state_subscribeStorage", Some(SubscribeKind("state"))),
            ("_subscribeKind", Some(Unpaired)),
            ("subscribe", Some(Unpaired)),
            ("unsubscribe", Some(Unpaired)),
            ("unsubscribe_all", Some(Unpaired)),
            ("logsSubscribe", Some(Unpaired)),
            ("logsUnsubscribe", Some(Unpaired)),
            ("trace_blockSubscribe", Some(Unpaired)),
            ("eth_Subscribe", Some(Unpaired)),
            ("ETH_SUBSCRIBE", Some(Unpaired)),
            ("chainHead_v1_follow", Some(Unpaired)),
            ("author_submitAndWatchExtrinsic", Some(Unpaired)),
            // Methods that only answer.
            ("", None),
            ("_", None),
            ("eth_call", None),
            ("net_subscribers", None),
            ("admin_subscribed", None),
            ("eth_getSubscribers", None),
            ("eth_subscription", None),
            ("x_resubscribe", None),
            ("x_éubscribe", None),
        ] {
            assert_eq!(SubscriptionMethod::of(method), says, "{method}");
        }
    }

    #[test]
    fn what_ends_it() {
        for (method, end) in [
            ("eth_subscribe", "eth_unsubscribe"),
            ("chain_a_subscribe", "chain_a_unsubscribe"),
            ("reth_subscribeChainNotifications", "reth_unsubscribeChainNotifications"),
            ("chain_subscribe_newHead", "chain_unsubscribe_newHead"),
        ] {
            assert_eq!(ended_by(method), end);
        }
        for (notification, ends) in [
            ("eth_subscription", "eth_unsubscribe"),
            ("debug_subscription", "debug_unsubscribe"),
            ("reth_subscriptionChain", "reth_unsubscribeChain reth_unsubscribe"),
            ("reth_subscribeChain", "reth_unsubscribeChain reth_unsubscribe"),
            ("chain_newHead", "chain_unsubscribe"),
            ("tick", "eth_unsubscribe"),
            ("_tick", "eth_unsubscribe"),
            ("", "eth_unsubscribe"),
        ] {
            assert_eq!(may_end(notification).join(" "), ends, "{notification}");
        }
    }
}
