//! The OpenRPC document as one client gets it: its rights, as the services apply them to its calls.

use super::Services;
use crate::delivery::Kind;
use crate::door::{Rights, Verdict};
use crate::rpc::openrpc::{self, Offer};
use crate::rpc::{SubscriptionMethod, known_methods};

/// Methods that a transport offers; subscriptions need a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// WebSocket: calls and subscriptions.
    WebSocket,
    /// HTTP: calls only.
    Http,
    /// Module in another server: calls of methods that are known by name, and subscriptions.
    Module,
}

impl Services {
    /// Returns the OpenRPC document for a client with these rights, as JSON. `embedded` are the methods of an embedder
    /// that the client may call; they are described by their names.
    #[must_use]
    pub fn document(&self, rights: &Rights, offered: Offered, embedded: &[&str]) -> String {
        document(rights, offered, embedded, self.rpc.may_develop())
    }
}

fn document(rights: &Rights, offered: Offered, embedded: &[&str], may_develop: bool) -> String {
    let methods = &rights.methods;
    let calls = |name: &str| match name {
        "eth_subscribe" => offered != Offered::Http && methods.allow_subscription(name),
        "eth_unsubscribe" => offered != Offered::Http,
        _ if offered == Offered::Module && !openrpc::is_own(name) && !known_methods().any(|known| known == name) => {
            false
        }
        _ if openrpc::is_own(name) => methods.allow_own(name),
        _ if embedded.contains(&name) => true,
        _ => match methods.verdict(name) {
            Verdict::Serve => true,
            Verdict::InDevelopment => may_develop,
            Verdict::Refuse => false,
        },
    };
    let kinds = |kind| rights.kinds.allow(kind) && (kind != Kind::Passthrough || rights.passed.reach("eth_"));
    // Kinds of the node are described with `eth_subscribe`; the intake refuses methods that end without a pair.
    let only_answers = |name: &&str| SubscriptionMethod::of(name).is_none();
    let listed = methods.allowed.names().filter(only_answers);
    let further: Vec<&str> = match offered {
        Offered::Module => Vec::new(),
        Offered::WebSocket | Offered::Http => listed.chain(embedded.iter().copied()).collect(),
    };
    openrpc::document(&Offer {
        calls: &calls,
        kinds: &kinds,
        weight: &|name| rights.weights.of(name),
        further: &further,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::config::{Config, typed};

    fn rights(edit: impl FnOnce(&mut typed::Config)) -> Arc<Rights> {
        let mut typed = typed::Config::default();
        edit(&mut typed);
        Config::check(&typed).unwrap().door.anonymous.clone()
    }

    fn parsed(rights: &Rights, offered: Offered, embedded: &[&str], may_develop: bool) -> Value {
        serde_json::from_str(&document(rights, offered, embedded, may_develop)).unwrap()
    }

    fn names(document: &Value) -> BTreeSet<&str> {
        let methods = document["methods"].as_array().unwrap().iter();
        methods.map(|method| method["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_client_is_told_of_what_it_may_call() {
        let rights = rights(|_| ());
        let web_socket = parsed(&rights, Offered::WebSocket, &["mine_hello"], false);
        let http = parsed(&rights, Offered::Http, &["mine_hello"], false);
        let (all, calls) = (names(&web_socket), names(&http));
        for name in [
            "eth_call",
            "headwater_accountUsage",
            "rpc.discover",
            "txpool_status",
            "mine_hello",
        ] {
            assert!(all.contains(name) && calls.contains(name), "{name}");
        }
        assert_eq!(Vec::from_iter(&all - &calls), ["eth_subscribe", "eth_unsubscribe"]);
        assert!(!all.contains("debug_setHead"));
        let costs = |name| {
            let methods = web_socket["methods"].as_array().unwrap();
            methods.iter().find(|method| method["name"] == name).unwrap()["x-weight"].as_u64()
        };
        assert_eq!((costs("eth_getLogs"), costs("eth_chainId")), (Some(10), Some(1)));
    }

    #[test]
    fn what_is_denied_is_left_out_and_what_is_named_is_added() {
        let rights = rights(|c| {
            c.methods.allowed = ["eth_*", "debug_traceCall", "eth_sendTransaction"]
                .map(String::from)
                .into();
            c.methods.denied = ["eth_getLogs", "headwater_accountUsage"].map(String::from).into();
            c.subscriptions.passthrough = vec!["debug_traceChain".into()];
        });
        let document = parsed(&rights, Offered::WebSocket, &["mine_hello"], false);
        let names = names(&document);
        for name in [
            "eth_call",
            "debug_traceCall",
            "eth_sendTransaction",
            "headwater_accountLimits",
            "mine_hello",
        ] {
            assert!(names.contains(name), "{name}");
        }
        for name in [
            "eth_getLogs",
            "headwater_accountUsage",
            "net_version",
            "debug_traceBlock",
        ] {
            assert!(!names.contains(name), "{name}");
        }
        assert!(
            !document.to_string().contains("only the node knows"),
            "no kind of eth is passed through"
        );
    }
}
