//! Table of the keys in sections with names of the operator's own, and their example.

/// Keys of the sections `[plans.NAME]`, `[keys.NAME]` and `[webhooks.NAME]`, and of tables in `upstream`: key, example, description.
pub(in crate::config) const NAMED: &[(&str, &str, &str)] = &[
    (
        "upstream[].address",
        "\"wss://node.example\"",
        "Address as in upstream. A table may be an entry of the list or its only value.",
    ),
    (
        "upstream[].archive",
        "false",
        "The node has the state of every block. While such a node is connected, calls about old state and traces go only to such nodes. A block named by its hash counts as old unless it is among the recent ones (history.blocks).",
    ),
    (
        "upstream[].methods",
        "[\"*\"]",
        "Methods that the node serves, by name or by prefix with *.",
    ),
    (
        "upstream[].calls",
        "\"share\"",
        "Share of clients' calls: share (by latency and load), spare (calls that no other node can take), none (heads and logs only).",
    ),
    (
        "plans.NAME",
        "any of limits, but max_connections, max_refusals and refusal_window",
        "Limits of clients on this plan; the others are those of [limits].",
    ),
    (
        "keys.NAME.hash",
        "\"sha256:…\"",
        "Hash of an API key, printed by headwater key NAME; the key itself is stored nowhere.",
    ),
    ("keys.NAME.plan", "\"default\"", "Plan of the key; default is [limits]."),
    (
        "keys.NAME.edge",
        "false",
        "The client is another headwater, which limits its own clients: no limits of requests, connections, subscriptions or egress, messages of the longest plan, a queue of a quarter of delivery.max_total_queue_bytes for each connection, never closed for refusals. Not together with plan.",
    ),
    (
        "keys.NAME.methods",
        "[\"eth_*\"]",
        "Methods that the key may call, instead of those of [methods]; a prefix covers methods that read.",
    ),
    (
        "keys.NAME.subscriptions",
        "[\"newHeads\", \"logs\"]",
        "Kinds that the key may subscribe to: newHeads, logs, blockLogs, newPendingTransactions, syncing, minedTransactions, transactionReceipts, passthrough (see subscriptions.passthrough).",
    ),
    (
        "keys.NAME.origins",
        "[\"https://app.example\"]",
        "Origins of web pages that may use the key, instead of server.origins.",
    ),
    (
        "keys.NAME.addresses",
        "[\"10.0.0.0/8\"]",
        "Client networks (CIDR) from which the key may be used.",
    ),
    (
        "webhooks.NAME.url",
        "\"https://hooks.example/headwater\"",
        "Address to which events are posted, signed as the Standard Webhooks specification says (docs/webhooks.md). Redirects are not followed.",
    ),
    (
        "webhooks.NAME.stream",
        "\"kind=logs&address=0x00000000000000000000000000000000000000aa\"",
        "Stream, as the query of /events has it (docs/server-sent-events.md): kind, filter, finality or confirmations, include, and fromBlock for the first start. Required.",
    ),
    (
        "webhooks.NAME.secret_file",
        "\"/etc/headwater/hook.secret\"",
        "File with the secret (whsec_ and base64 of 24 to 64 bytes), or two on two lines during a rotation: each signs. Required.",
    ),
    (
        "webhooks.NAME.state",
        "\"/var/lib/headwater/hook.state\"",
        "File of the position and of the batch under way, one for each webhook. Required.",
    ),
    ("webhooks.NAME.batch", "100", "Most events of a request."),
    (
        "webhooks.NAME.batch_bytes",
        "\"1 MiB\"",
        "Bytes of events at which a request is complete; one more is gathered meanwhile.",
    ),
    ("webhooks.NAME.timeout", "\"15s\"", "Time limit of a request."),
    (
        "webhooks.NAME.retry_max",
        "\"5m\"",
        "Longest wait between two attempts: waits begin at 1s and double, with jitter.",
    ),
    (
        "webhooks.NAME.retry_for",
        "\"1day\"",
        "Time from the first attempt after which a batch goes to the dead letters, and the next one is sent.",
    ),
    (
        "webhooks.NAME.dead_letters",
        "\"/var/lib/headwater/hook.dead\"",
        "File of batches that were given up, a line of JSON each; without it, the file of state with .dead behind its name.",
    ),
    (
        "webhooks.NAME.dead_letters_bytes",
        "\"64 MiB\"",
        "Length at which that file takes the place of the one before it (.old).",
    ),
    (
        "webhooks.NAME.allow_private",
        "false",
        "Allows receivers on loopback, private, link-local and other addresses that are not public.",
    ),
    (
        "webhooks.NAME.ca",
        "\"/etc/headwater/ca.pem\"",
        "PEM file with certificate authorities trusted for the receiver, in addition to the system's.",
    ),
];

/// A node, a plan, a key and a webhook as comments, for the end of the example file.
pub(super) const NAMED_EXAMPLE: &str = "
# A node with options: an archive node that gets only the calls that no other node can take.
#
# upstream = [\"ws://127.0.0.1:8546\", { address = \"wss://archive.example\", archive = true, methods = [\"*\"], calls = \"spare\" }]
#
# Plans and keys are sections with names that you choose. This file, and the files named in [auth], are read again on
# SIGHUP and when they change.
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
#
# Webhooks are sections with names that you choose, too.
#
# [webhooks.transfers]
# url = \"https://hooks.example/headwater\"
# stream = \"kind=logs&address=0x00000000000000000000000000000000000000aa\"
# secret_file = \"/etc/headwater/hook.secret\"
# state = \"/var/lib/headwater/hook.state\"
";
