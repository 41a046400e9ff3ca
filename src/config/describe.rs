//! Descriptions of all keys, from which `default-config`, `config/example.toml` and `docs/configuration.md` are
//! generated.

use figment::Figment;
use figment::providers::Serialized;
use figment::value::Value;

use super::{changes, typed};

/// Every key with its description, in the order of the generated files.
const KEYS: &[(&str, &str)] = &[
    ("listen", "Where clients connect: WebSocket and HTTP on one port."),
    ("admin", "Where the operator looks: /health, /ready, /metrics, /status."),
    (
        "admin_hosts",
        "Names by which /metrics and /status may be asked for, beside addresses and localhost, against pages that let their own name point there; others get HTTP 403. \"*\" for any.",
    ),
    (
        "upstream",
        "The node, or several by priority: ws://, wss://, http://, https:// or the path of an IPC socket. None starts the embedded devnet. A table may stand in place of an address, as in the last lines of config/example.toml.",
    ),
    (
        "node.chain_id",
        "The chain that the nodes must be on; 0: the one that the first node which is reached is on.",
    ),
    (
        "node.request_timeout",
        "How long a node may take to answer a call; then -32002. A call that is sent to a second node begins anew.",
    ),
    ("node.connect_timeout", "How long connecting to a node may take."),
    (
        "node.reconnect_min",
        "First wait before a reconnection; it doubles, with jitter.",
    ),
    ("node.reconnect_max", "Longest wait before a reconnection."),
    (
        "node.silence_timeout",
        "Within so long a node that is dead, stalled, behind the others or forked is left for another one, or for a fresh connection where it is the only one.",
    ),
    (
        "node.take_back_after",
        "How long a node must have been connected, level with the others and not forked before it is preferred again to one that was given after it.",
    ),
    ("node.poll_interval", "How often an HTTP node is asked for its head."),
    (
        "node.lanes",
        "Connections to a node over WebSocket or IPC: with 2, calls have one of their own and delay no head; 1 for nodes that allow one.",
    ),
    (
        "node.max_in_flight",
        "Calls that wait for nodes; more wait in line, in turns by client. One client has a quarter of the places at most (half while nobody else waits), and half of those that the others leave, and 1,024 calls in line; more get -32005 with a hint when to come again.",
    ),
    (
        "node.max_request_bytes",
        "Longest parameters of a call that are sent to a node.",
    ),
    ("node.max_message_bytes", "Longest message that is read from a node."),
    (
        "node.ca",
        "PEM file with authorities that are believed for wss:// and https:// nodes, besides the system's.",
    ),
    (
        "calls.patience",
        "How long a call waits for a node that has the newest head that clients were shown, or for any node at all; then -32603.",
    ),
    (
        "calls.hedge",
        "Whether a second node is asked too where the first takes longer than nineteen of twenty such calls did; reads alone.",
    ),
    (
        "calls.broadcast",
        "Whether eth_sendRawTransaction goes to all nodes at once, rather than to the one in use.",
    ),
    (
        "calls.max_response_bytes",
        "Longest answer to one call; a longer one becomes -32003 \"response too large\".",
    ),
    (
        "calls.max_batch_response_bytes",
        "Longest answer to a batch; the items beyond it get -32003. geth has 25,000,000 bytes.",
    ),
    (
        "cache.max_bytes",
        "Answers that are kept, those for good and those that hold until the next head; 0 keeps none, and equal calls that are under way at once still share one.",
    ),
    (
        "history.blocks",
        "Blocks kept with their logs, as many dropped ones beside; how far back a reorg is told.",
    ),
    (
        "history.max_replay",
        "How far back a client may resume, and the longest outage that is made up for, in blocks; beyond memory they are fetched.",
    ),
    (
        "history.verify",
        "What a block's logs are held against before they are delivered: none, bloom, or receipts (one more call a block; the receipts root and the header's hash are computed anew, so a node can neither forge nor omit a log).",
    ),
    (
        "subscriptions.filter_from_block",
        "What fromBlock in a logs filter means: bound (as in geth, only later logs) or replay (logs from there on come first; not for 0x0, which go-ethereum always sends).",
    ),
    (
        "subscriptions.pass",
        "Kinds unknown here that are asked of the node in use, as namespace_kind, by the method where it is reth_subscribeX and its like, or by prefix with *: \"eth_newVotes\", \"debug_traceChain\"; [] for none. Of namespaces that are not for everybody methods.allowed must name debug_subscribe and the like, too.",
    ),
    (
        "subscriptions.max_passed",
        "Different ones of these (kind and parameters) at the node at one time, over all clients, a quarter (at least one) for one client; more get -32005. Each costs the node, and the line to it, what one client of its own would.",
    ),
    (
        "limits.max_connections",
        "Open connections. Where all places are taken a newcomer gets that of the idlest connection (without subscriptions first) of the network (IPv4 /24, IPv6 /48) and address that have most, which is closed with 1013; HTTP 429 where nobody has more than the newcomer.",
    ),
    (
        "limits.max_connections_per_client",
        "Open connections of one client, which is an API key, the subject of a token, or an address (IPv6: its /64); more get HTTP 429.",
    ),
    (
        "limits.handshakes_per_minute",
        "Upgrades of one client, and keys and tokens from its address that are not valid; more get HTTP 429.",
    ),
    (
        "limits.requests_per_second",
        "Requests a second of one client, each item of a batch counted by its weight (methods.weights); more get -32005, over HTTP with status 429.",
    ),
    (
        "limits.request_burst",
        "Requests at once of one client; a call that weighs more takes all of it.",
    ),
    (
        "limits.max_subscriptions",
        "Subscriptions of one connection; more get -32005.",
    ),
    (
        "limits.max_subscriptions_per_client",
        "Subscriptions of one client; more get -32005.",
    ),
    (
        "limits.max_index_entries",
        "Addresses times topics (each at least one) over all logs filters of one client, at least 1000 for one with more than \
         256 combinations of several lists, and what its filters of transactions and receipts name; more get -32005.",
    ),
    (
        "limits.egress_bytes_per_second",
        "Notifications of one client, by their length before compression; more wait in its queue, and where that is full or they wait too long, the connection is closed with 1008. 0 for any number.",
    ),
    (
        "limits.max_message_bytes",
        "Longest WebSocket message of a client; a longer one closes with 1009.",
    ),
    ("limits.max_body_bytes", "Longest HTTP body; a longer one gets 413."),
    (
        "limits.max_batch",
        "Items of a batch; more get -32600 \"batch too large\".",
    ),
    (
        "limits.max_in_flight",
        "Calls of one connection that wait for the node; more get -32005. Items of a batch count one by one: over WebSocket those beyond its first find a place while half are free, and wait for one.",
    ),
    (
        "limits.max_refusals",
        "Messages of one connection that may be refused for a limit within limits.refusal_window; one more closes it with 1008.",
    ),
    ("limits.refusal_window", "See limits.max_refusals."),
    (
        "auth.required",
        "Whether nobody comes in without a valid API key or token (HTTP 401). One that is not valid is refused in any case.",
    ),
    (
        "auth.accept",
        "Where a key or token may stand: bearer (Authorization: Bearer), header (X-API-Key), path (a key as the last segment: /KEY, /v1/KEY), query (?key=).",
    ),
    (
        "auth.jwt_secret_file",
        "Takes tokens signed with HS256 by this secret: 64 hex digits as geth keeps them, or at least 32 bytes.",
    ),
    (
        "auth.jwks_file",
        "Takes tokens signed with RS256 or ES256 by one of the public keys in this file (JWKS).",
    ),
    ("auth.jwt_issuer", "What iss of a token must be, where it is not empty."),
    (
        "auth.jwt_audience",
        "What aud of a token must be, where it is not empty.",
    ),
    (
        "auth.jwt_plan",
        "The plan of tokens that name none in a claim plan. A token needs sub, who is charged, and exp, when its connections are closed.",
    ),
    (
        "delivery.holdoff",
        "From the answer to eth_subscribe to the first notification; web3.js 4 and web3.py 8 lose what comes with the answer.",
    ),
    (
        "delivery.max_queue_bytes",
        "What may wait for one client; more closes with 1013.",
    ),
    (
        "delivery.max_total_queue_bytes",
        "What may wait for all clients together whose sockets are full; above it those with the longest queues are closed with 1013, longest first. An event counts in every queue that it waits in, although its bytes are in memory once.",
    ),
    (
        "delivery.max_queue_age",
        "How long an event may wait for one client; longer closes with 1013.",
    ),
    (
        "delivery.write_deadline",
        "A client that takes no bytes for so long is cut off.",
    ),
    (
        "delivery.notsent_lowat",
        "TCP_NOTSENT_LOWAT: what the kernel may hold unsent for one client; 0 leaves the kernel's own.",
    ),
    (
        "delivery.compression",
        "on: clients that offer permessage-deflate get it, and what many of them get is compressed once for all; off: declined, as nodes do.",
    ),
    (
        "memory.inbound",
        "Bytes of clients' messages and bodies that are not whole, or whose long parameters wait for their answer, for one client a quarter of it at most, and half of what the others leave; where there is no room the longest goes first: closed with 1013, over HTTP 503.",
    ),
    (
        "memory.answers",
        "Bytes of answers that are put together (batches, eth_getLogs from memory) or wait to be read over HTTP, for one client a quarter of it at most, and half of what the others leave, or one answer of three quarters of that; where there is no other answer it may be as long as calls.max_response_bytes. More get -32005 with a hint when to come again, over HTTP with status 503.",
    ),
    (
        "memory.upstream",
        "Bytes of answers to clients' calls that are being read from HTTP nodes, and again of those to our own questions; shared as memory.answers is.",
    ),
    (
        "memory.replays",
        "Bytes of old blocks that are held for clients which resume; who does not read keeps none.",
    ),
    (
        "memory.parents",
        "Bytes of blocks that a node announced and that do not belong to the chain yet, or not any more; the longest go first.",
    ),
    (
        "memory.history",
        "Bytes of the blocks of history.blocks, dropped ones beside; above it the oldest go first, down to 16.",
    ),
    ("keepalive.ping_interval", "How often clients are pinged."),
    (
        "keepalive.silence_timeout",
        "A client from which nothing comes for so long, pongs included, is closed with 1008, and so is one whose message takes longer from its first byte to its last.",
    ),
    (
        "server.origins",
        "Browser pages that may connect and, over HTTP, read answers (CORS), as [scheme://]host[:port] or *; requests without Origin pass.",
    ),
    (
        "server.hosts",
        "Names by which clients may ask for us (Host), against DNS rebinding; addresses always pass. Any by default, for server.origins holds rebinding pages off already, and beside a node we go by many names.",
    ),
    (
        "server.subprotocols",
        "WebSocket subprotocols; of those that a client offers the first that is listed is echoed.",
    ),
    (
        "server.trusted_proxies",
        "Networks (CIDR) of proxies before us whose word on the client's address is taken.",
    ),
    (
        "server.forwarded_header",
        "Where they give it: x-forwarded-for or forwarded (RFC 7239). It is read from the right, past trusted proxies only; the other one is not looked at.",
    ),
    (
        "server.max_handshakes",
        "Connections that have not sent a request yet, a quarter of them from one address at most, which gets HTTP 503 for more; where all are taken the oldest gives way, of the network (IPv4 /24, IPv6 /48) that has most.",
    ),
    (
        "server.header_timeout",
        "How long the head of a request may take; its body three times as long.",
    ),
    (
        "server.proxy_protocol",
        "Every connection begins with a PROXY protocol header, version 2, which tells who the client is. Only for ports that nobody but a load balancer reaches.",
    ),
    (
        "server.reuse_port",
        "Another process may listen on the same port (SO_REUSEPORT): a new version starts before the old one drains.",
    ),
    (
        "tls.certificate",
        "PEM file with our certificate and those of the authorities between: the port speaks wss:// and https:// only. It is read again when it changes.",
    ),
    ("tls.key", "PEM file with the certificate's private key."),
    (
        "tls.client_ca",
        "PEM file with authorities: every client has to show a certificate that one of them signed.",
    ),
    (
        "methods.allowed",
        "Methods that may be called, by name or by prefix with *; others get geth's \"does not exist\". A prefix stands for what reads: a method that signs, writes or administers (docs/methods.md) is named in full.",
    ),
    (
        "methods.denied",
        "Methods that may not be called all the same, by name or by prefix with *.",
    ),
    (
        "methods.unknown",
        "Namespaces that neither methods.allowed nor docs/methods.md knows: refuse, or serve (what reads).",
    ),
    (
        "methods.development",
        "Commands to a development chain (evm, anvil, hardhat, ganache, devnet) and its unlocked accounts: local (served where every upstream is anvil, Hardhat, Ganache or headwater's devnet by its web3_clientVersion, we listen on loopback and no proxy is trusted), or off.",
    ),
    (
        "methods.weights",
        "What a call costs of limits.requests_per_second, by name or by prefix with *; 1 where nothing is said. Entries add to these or replace them.",
    ),
    (
        "ready.max_head_age",
        "/ready says no when the newest block arrived longer ago.",
    ),
    (
        "shutdown.grace",
        "How long clients have to leave after SIGTERM before they are cut off; their close frames are spread over up to half of it.",
    ),
    ("log.format", "text or json."),
    (
        "log.filter",
        "A level, or directives as in \"info,headwater::upstream=debug\".",
    ),
    ("devnet.seed", "The embedded chain: same seed, same blocks."),
    ("devnet.block_time", "The embedded chain: time between blocks."),
    (
        "devnet.pending_rate",
        "The embedded chain: pending transactions a second.",
    ),
    (
        "devnet.transactions_per_block",
        "The embedded chain: transactions in a block.",
    ),
    (
        "devnet.logs_per_transaction",
        "The embedded chain: logs of a transaction.",
    ),
];

/// Keys of the sections `[plans.NAME]` and `[keys.NAME]` and of tables in `upstream`: key, example, description.
const NAMED: &[(&str, &str, &str)] = &[
    (
        "upstream[].address",
        "\"wss://node.example\"",
        "As in upstream; a table with more to say, in the list among addresses or alone.",
    ),
    (
        "upstream[].archive",
        "false",
        "It has the state of every block. While such a node is connected, calls about the state of old blocks and traces go to such ones alone. A block that is named by its hash is old where it is none of the recent ones (history.blocks).",
    ),
    (
        "upstream[].methods",
        "[\"*\"]",
        "What it serves, by name or by prefix with *.",
    ),
    (
        "upstream[].calls",
        "\"share\"",
        "Which of the clients' calls it gets: share (as many as it answers quickly), spare (those that no other can take), none (it is there for heads and logs).",
    ),
    (
        "plans.NAME",
        "any of limits, but max_connections, max_refusals and refusal_window",
        "What clients on this plan may have; [limits] where nothing is said.",
    ),
    (
        "keys.NAME.hash",
        "\"sha256:…\"",
        "An API key, made and printed by headwater key NAME; the key itself is kept nowhere.",
    ),
    ("keys.NAME.plan", "\"default\"", "Its plan; default is [limits]."),
    (
        "keys.NAME.methods",
        "[\"eth_*\"]",
        "What it may call, in place of everything that [methods] says; a prefix stands for what reads.",
    ),
    (
        "keys.NAME.subscriptions",
        "[\"newHeads\", \"logs\"]",
        "What it may subscribe to, of newHeads, logs, newPendingTransactions, syncing, minedTransactions, transactionReceipts, passed (what subscriptions.pass says).",
    ),
    (
        "keys.NAME.origins",
        "[\"https://app.example\"]",
        "Pages that may use it, in place of server.origins.",
    ),
    (
        "keys.NAME.addresses",
        "[\"10.0.0.0/8\"]",
        "Addresses (CIDR) from which it may be used.",
    ),
];

/// A node, a plan and a key as comments, for the end of the example file.
const NAMED_EXAMPLE: &str = "
# A node with more to say than its address: an archive that gets only the calls that no other can take.
#
# upstream = [\"ws://127.0.0.1:8546\", { address = \"wss://archive.example\", archive = true, methods = [\"*\"], calls = \"spare\" }]
#
# Plans and keys are sections with names of your own. This file, and those that auth names, are read again on SIGHUP and
# when they change.
#
# [plans.partner]
# requests_per_second = 2000
# request_burst = 10000
# egress_bytes_per_second = \"2 MiB\"
#
# [keys.alice]
# hash = \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"
# plan = \"partner\"
# methods = [\"eth_*\", \"net_version\"]
# subscriptions = [\"newHeads\", \"logs\"]
# origins = [\"https://app.example\"]
# addresses = [\"10.0.0.0/8\"]
";

/// Returns all keys, dotted.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(key, _)| *key)
}

/// Returns the dotted keys of `section`, if the operator chose its name.
pub(super) fn keys_of(section: &str) -> Vec<String> {
    let own = |field: &str| format!("{section}.{field}");
    let named = |prefix: &'static str| NAMED.iter().filter_map(move |(key, ..)| key.strip_prefix(prefix));
    match section.split_once('.') {
        Some(("plans", _)) => keys().filter_map(|key| key.strip_prefix("limits.")).map(own).collect(),
        Some(("keys", _)) => named("keys.NAME.").map(own).collect(),
        Some(("upstream", _)) => named("upstream[].").map(own).collect(),
        _ => Vec::new(),
    }
}

/// Returns the environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("HEADWATER_{}", key.replace('.', "_").to_ascii_uppercase())
}

fn default_of(key: &str) -> String {
    let figment = Figment::from(Serialized::defaults(typed::Config::default()));
    figment
        .find_value(key)
        .map(|value| toml_text(&value))
        .unwrap_or_default()
}

fn toml_text(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{text:?}"),
        Value::Array(_, items) => format!("[{}]", items.iter().map(toml_text).collect::<Vec<_>>().join(", ")),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Dict(_, entries) => {
            let entry = |(name, value): (&String, &Value)| format!("{name:?} = {}", toml_text(value));
            format!("{{ {} }}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Value::Num(_, number) => number.to_u128().map(|n| n.to_string()).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Returns a configuration file with every key, its description and its default.
#[must_use]
pub fn example() -> String {
    let mut out = String::from(
        "# headwater: every setting with its default. Each is also a variable: limits.max_batch is\n\
         # HEADWATER_LIMITS_MAX_BATCH. Flags come before variables, variables before this file.\n",
    );
    let mut section = "";
    for (key, words) in KEYS {
        let (own, name) = key.split_once('.').unwrap_or(("", key));
        if own != section {
            section = own;
            out.push_str(&format!("\n[{section}]\n"));
        } else if section.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("# {words}\n{name} = {}\n", default_of(key)));
    }
    out.push_str(NAMED_EXAMPLE);
    out
}

/// Introduction of `docs/configuration.md`.
const REFERENCE: &str = "\
# Configuration

Every setting with its default. This page is generated from [`src/config/describe.rs`](../src/config/describe.rs):
`UPDATE_EXPECT=1 cargo test --lib describe`. [`config/example.toml`](../config/example.toml) is the same as a file, which
`headwater default-config` prints; `headwater check-config` checks a configuration and says what it comes to.

Flags come before variables, variables before the file (`--config FILE`), the file before the defaults. A key `limits.max_batch`
is `max_batch` in section `[limits]` of the file and the variable `HEADWATER_LIMITS_MAX_BATCH`. A key that does not exist or a
value that makes no sense stops the start with one line and exit code 64.

Settings that are marked *live* take effect without a restart, for connected clients too ([operations.md](operations.md#reload)).
";

/// Returns the page `docs/configuration.md`, with a heading for each key as a link target.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(REFERENCE);
    let mut section = None;
    for (key, words) in KEYS {
        let own = key.split_once('.').map_or("", |(own, _)| own);
        if section != Some(own) {
            section = Some(own);
            let title = if own.is_empty() {
                "Top level".to_owned()
            } else {
                format!("`[{own}]`")
            };
            out.push_str(&format!("\n## {title}\n"));
        }
        let live = if changes::is_live(key) { ", *live*" } else { "" };
        out.push_str(&format!(
            "\n### `{key}`\n\nDefault: `{}`{live}\n\n{words}\n",
            default_of(key)
        ));
    }
    out.push_str("\n## Sections with names of your own\n");
    for (key, example, words) in NAMED {
        let live = if changes::is_live(key) { ", *live*" } else { "" };
        out.push_str(&format!("\n### `{key}`\n\nFor example: `{example}`{live}\n\n{words}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use figment::value::Dict;
    use figment::{Profile, Provider};

    use super::*;

    fn defaults() -> Dict {
        let provider = Serialized::defaults(typed::Config::default());
        provider
            .data()
            .ok()
            .and_then(|mut data| data.remove(&Profile::Default))
            .unwrap_or_default()
    }

    fn leaves(dict: &Dict, prefix: &str, out: &mut Vec<String>) {
        for (key, value) in dict {
            match value {
                // A table whose keys the operator chooses.
                Value::Dict(..) if keys().any(|known| known == format!("{prefix}{key}")) => {
                    out.push(format!("{prefix}{key}"));
                }
                Value::Dict(_, inner) => leaves(inner, &format!("{prefix}{key}."), out),
                _ => out.push(format!("{prefix}{key}")),
            }
        }
    }

    #[test]
    fn every_key_has_words_and_every_word_a_key() {
        let mut have = Vec::new();
        leaves(&defaults(), "", &mut have);
        let mut described: Vec<_> = keys().map(str::to_owned).collect();
        have.sort();
        described.sort();
        assert_eq!(have, described);
    }

    #[test]
    fn the_example_is_the_default() {
        let read: typed::Config = toml::from_str(&example()).expect("the example parses");
        assert_eq!(read, typed::Config::default());
    }

    /// `UPDATE_EXPECT=1 cargo test` writes both files again.
    #[test]
    fn the_files_people_read_are_true() {
        expect_test::expect_file!["../../config/example.toml"].assert_eq(&example());
        expect_test::expect_file!["../../docs/configuration.md"].assert_eq(&reference());
    }
}
