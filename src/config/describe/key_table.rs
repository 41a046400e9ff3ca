//! Table of all keys with their descriptions.

/// Every key with its description, in the order of the generated files.
pub(in crate::config) const KEYS: &[(&str, &str)] = &[
    ("listen", "Address for clients: WebSocket and HTTP on one port."),
    (
        "admin",
        "Address for the operator: /health, /ready, /metrics, /status, and the operator's API at /api (docs/operator.md).",
    ),
    (
        "admin_hosts",
        "Host names accepted by the admin port besides IP addresses and localhost, except for /health and /ready; others get HTTP 403 (against DNS rebinding). \"*\" accepts any.",
    ),
    (
        "admin_token_file",
        "File with the token for the operator's API, at least 16 characters, read at the start. Without one the API is served only where both the admin address and the peer are on loopback.",
    ),
    (
        "admin_usage_file",
        "File for the usage of each key by hour, over 30 days, written every five minutes; empty keeps it in memory only.",
    ),
    (
        "upstream",
        "Node, or several in the order of priority: ws://, wss://, http://, https:// or the path of an IPC socket. Without one the embedded devnet starts. An entry may be a table instead of an address; see the last lines of config/example.toml.",
    ),
    (
        "node.chain_id",
        "Chain id that all nodes must have; 0 takes the chain id of the first node that connects.",
    ),
    (
        "node.request_timeout",
        "Time limit for a node's answer to a call; then -32002. It starts anew when a call is sent to a second node.",
    ),
    ("node.connect_timeout", "Time limit for connecting to a node."),
    (
        "node.reconnect_min",
        "Shortest wait before a reconnection; waits double each time, with jitter.",
    ),
    (
        "node.reconnect_max",
        "Longest wait before a reconnection, jitter included. A node that refuses connections or does not answer is tried every 2s at least, or at node.reconnect_min if that is longer.",
    ),
    (
        "node.silence_timeout",
        "Time within which headwater fails over from a node that is dead, stalled, lagging or forked; a single node gets a new connection.",
    ),
    (
        "node.failback_after",
        "Time for which a node of higher priority must have been connected, in sync and not forked before failback to it.",
    ),
    (
        "node.poll_interval",
        "Interval at which an HTTP node is polled for its head.",
    ),
    (
        "node.lanes",
        "Connections to a node over WebSocket or IPC. With 2, calls have a connection of their own and cannot delay heads; use 1 for nodes that allow one.",
    ),
    (
        "node.http_compression",
        "HTTP nodes that are offered to compress their answers with zstd or gzip: auto (nodes on other machines), on (all), off (none). Size limits apply to the decompressed answer.",
    ),
    (
        "node.max_in_flight",
        "Calls in flight at the nodes; further calls wait, in turns by client. One client gets at most a quarter of the places (half while no other client waits), at most half of the places that others leave, and 1,024 waiting calls; more get -32005 with a retry hint.",
    ),
    (
        "node.max_request_bytes",
        "Longest parameters of a call that are sent to a node.",
    ),
    ("node.max_message_bytes", "Longest message that is read from a node."),
    (
        "node.ca",
        "PEM file with certificate authorities trusted for wss:// and https:// nodes, in addition to the system's.",
    ),
    (
        "calls.head_wait_timeout",
        "Time for which a call waits for a node that has the newest published head, or for any node; then -32603. A subscription that resumes after a block not known yet waits as long for it; then -32001.",
    ),
    (
        "calls.hedge",
        "Sends a read to a second node too if the first takes longer than 95 % of such calls.",
    ),
    (
        "calls.broadcast",
        "Sends eth_sendRawTransaction to all nodes at once instead of the active node.",
    ),
    (
        "calls.max_response_bytes",
        "Longest answer to one call; a longer one is replaced by -32003 \"response too large\".",
    ),
    (
        "calls.max_batch_response_bytes",
        "Longest answer to a batch; items beyond it get -32003. geth's limit is 25,000,000 bytes.",
    ),
    (
        "cache.max_bytes",
        "Memory for cached answers, both permanent ones and those valid until the next head. 0 caches none; equal calls in flight at the same time still share one answer.",
    ),
    (
        "history.blocks",
        "Blocks kept in memory with their logs, and as many dropped ones; also the greatest depth of a reorg that is delivered.",
    ),
    (
        "history.max_replay",
        "Greatest distance in blocks for a resume, and longest outage that is backfilled. Blocks older than memory are fetched.",
    ),
    (
        "history.verify",
        "Check of a block's logs before delivery: none; bloom (against logsBloom); receipts (one more call per block; receipts root and block hash are recomputed, so a node can neither forge nor omit a log).",
    ),
    (
        "history.finality_depth",
        "Depth below the head, in blocks, at which a block counts as safe and finalized on a chain whose nodes have no such tags; /status says if it is used. 0 for none: subscriptions to these levels are refused there.",
    ),
    (
        "subscriptions.filter_from_block",
        "Meaning of fromBlock in a logs subscription: bound (only later logs, as in geth) or replay (logs from fromBlock on are delivered first; not for 0x0, which go-ethereum always sends).",
    ),
    (
        "subscriptions.passthrough",
        "Subscription kinds unknown to headwater that are requested from the active node: as namespace_kind, as a method for reth_subscribeX and the like, or as a prefix with *: \"eth_newVotes\", \"debug_traceChain\"; [] for none. For a namespace that is not public, methods.allowed must also list its debug_subscribe or the like.",
    ),
    (
        "subscriptions.max_passthrough",
        "Different passthrough subscriptions (kind and parameters) at the node at one time, over all clients; a quarter (at least one) for one client; more get -32005. Each costs the node, and the connection to it, as much as one direct client.",
    ),
    (
        "sessions.keep",
        "Time for which the positions of a session are kept after its connection ended; later its client is closed once with 1012, and served live.",
    ),
    (
        "sessions.overlap",
        "Blocks before the confirmed position that are sent again to a returning session, for libraries that drop their own buffer when a connection ends.",
    ),
    (
        "sessions.max",
        "Sessions in memory, of which one client may have a quarter; the oldest without a connection make room for others.",
    ),
    (
        "sessions.file",
        "File that keeps the positions of sessions over a graceful restart of the same version: written at the end, read and removed at the start. Empty, or after an upgrade: they are lost, and each client is closed once with 1012.",
    ),
    (
        "fleet.secret_file",
        "File with a secret of at least 32 characters, the same at all headwaters of a tree, read at the start: quotas are then shared by all of them (docs/several.md). Empty: each headwater's quotas are its own.",
    ),
    (
        "fleet.exchange",
        "Interval at which an edge reports its clients' use to its roots and takes that of others; at least 50ms.",
    ),
    (
        "limits.max_connections",
        "Open connections. When all are taken, a newcomer displaces the idlest connection (those without subscriptions first) of the network (IPv4 /24, IPv6 /48) and address with most connections, which is closed with 1013; if none has more than the newcomer, the newcomer gets HTTP 429.",
    ),
    (
        "limits.max_connections_per_client",
        "Open connections of one client; more get HTTP 429. A client is an API key, the subject of a token, or an address (IPv6: its /64).",
    ),
    (
        "limits.handshakes_per_minute",
        "WebSocket upgrades of one client, and invalid keys and tokens from its address; more get HTTP 429.",
    ),
    (
        "limits.requests_per_second",
        "Requests per second of one client; each item of a batch counts by its weight (methods.weights). More get -32005, over HTTP with status 429.",
    ),
    (
        "limits.request_burst",
        "Requests of one client at once; a call with a greater weight takes the whole burst.",
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
        "Index entries of one client: for each logs filter addresses times topics (each at least one; at least 1000 for a filter with more than 256 combinations of several lists), and the addresses and hashes in its filters of transactions and receipts; more get -32005.",
    ),
    (
        "limits.egress_bytes_per_second",
        "Bytes of notifications per second of one client, before compression. More wait in its queue; when that is full, or they wait too long, the connection is closed with 1008. 0 for no limit.",
    ),
    (
        "limits.max_message_bytes",
        "Longest WebSocket message of a client; a longer one is closed with 1009.",
    ),
    ("limits.max_body_bytes", "Longest HTTP body; a longer one gets 413."),
    (
        "limits.max_batch",
        "Items of a batch; more get -32600 \"batch too large\".",
    ),
    (
        "limits.max_in_flight",
        "Calls of one connection in flight; more get -32005. Each item of a batch counts; over WebSocket the items after the first take places only while half are free, and wait otherwise.",
    ),
    (
        "limits.max_refusals",
        "Messages of one connection that may be refused for a limit within limits.refusal_window; one more closes it with 1008.",
    ),
    ("limits.refusal_window", "Length of the window of limits.max_refusals."),
    (
        "auth.required",
        "Requires a valid API key or token (else HTTP 401). An invalid one is refused in any case.",
    ),
    (
        "auth.accept",
        "Places of a key or token in a request: bearer (Authorization: Bearer), header (X-API-Key), path (a key as the last segment: /KEY, /v1/KEY), query (?key=).",
    ),
    (
        "auth.jwt_secret_file",
        "File with the secret of tokens signed with HS256: 64 hex digits as in geth's, or at least 32 bytes.",
    ),
    (
        "auth.jwks_file",
        "JWKS file with the public keys of tokens signed with RS256 or ES256.",
    ),
    ("auth.jwt_issuer", "Required iss of a token; empty for any."),
    ("auth.jwt_audience", "Required aud of a token; empty for any."),
    (
        "auth.jwt_plan",
        "Plan of tokens without a claim named plan. Every token needs sub (the client that is charged) and exp (the time at which its connections are closed).",
    ),
    (
        "delivery.holdoff",
        "Wait between the answer to eth_subscribe and the first notification: web3.js 4 and web3.py 8 lose notifications that arrive with the answer.",
    ),
    (
        "delivery.max_queue_bytes",
        "Bytes queued for one client; more close it with 1013.",
    ),
    (
        "delivery.max_total_queue_bytes",
        "Bytes queued for all clients whose sockets are full; above it the clients with the longest queues are closed with 1013, longest first. An event counts in every queue, although its bytes are in memory once.",
    ),
    (
        "delivery.max_queue_age",
        "Longest time that an event may be queued for a client; then the client is closed with 1013.",
    ),
    (
        "delivery.write_deadline",
        "Time limit for a client to read: a connection without progress for this long is cut off.",
    ),
    (
        "delivery.notsent_lowat",
        "TCP_NOTSENT_LOWAT: bytes that the kernel may queue unsent for one client; 0 leaves the kernel's default.",
    ),
    (
        "delivery.compression",
        "on: clients that offer permessage-deflate get it, and events for many of them are compressed once for all; off: offers are declined, as nodes do.",
    ),
    (
        "memory.inbound",
        "Bytes of incomplete messages and bodies of clients, and of long parameters until their answer; one client gets at most a quarter, and at most half of what others leave. When it is full the longest is evicted: closed with 1013, over HTTP 503.",
    ),
    (
        "memory.answers",
        "Bytes of answers that are being built (batches, eth_getLogs from memory) or read over HTTP; one client gets at most a quarter and at most half of what others leave, or one answer of three quarters of that. A single answer, while there is no other, may be as long as calls.max_response_bytes. More get -32005 with a retry hint, over HTTP with status 503.",
    ),
    (
        "memory.upstream",
        "Bytes of answers that are being read from HTTP nodes to clients' calls, and the same again to headwater's own; shared like memory.answers.",
    ),
    (
        "memory.replays",
        "Bytes of old blocks in memory for clients that resume; clients that do not read keep none.",
    ),
    (
        "memory.parents",
        "Bytes of announced blocks that are not yet, or no longer, part of the chain; the longest are dropped first.",
    ),
    (
        "memory.history",
        "Bytes of the blocks of history.blocks, dropped blocks included; above it the oldest are forgotten, down to 16 blocks.",
    ),
    (
        "memory.sessions",
        "Memory for positions of sessions, of which one client may have a quarter: about 1 KiB for a session and 1.5 KiB for each subscription. Without room, sessions that have no connection make room, then subscriptions get -32005.",
    ),
    ("keepalive.ping_interval", "Interval at which clients are pinged."),
    (
        "keepalive.silence_timeout",
        "A client that sends nothing for this long, not even a pong, is closed with 1008, and so is one whose message takes longer from its first byte to its last.",
    ),
    (
        "server.origins",
        "Origins of web pages that may connect and, over HTTP, read answers (CORS), as [scheme://]host[:port] or *; requests without Origin are accepted.",
    ),
    (
        "server.hosts",
        "Host names accepted in requests, against DNS rebinding; IP addresses are always accepted. Any by default: server.origins already refuses rebinding pages, and next to a node headwater has many names.",
    ),
    (
        "server.subprotocols",
        "WebSocket subprotocols; the first in this list that a client offers is selected.",
    ),
    (
        "server.trusted_proxies",
        "Networks (CIDR) of proxies that are trusted to report the client's address.",
    ),
    (
        "server.forwarded_header",
        "Header with the client's address: x-forwarded-for or forwarded (RFC 7239). It is read from the right, past trusted proxies only; the other header is ignored.",
    ),
    (
        "server.max_handshakes",
        "Connections that have not sent a request yet; one address gets at most a quarter, and HTTP 503 for more. When all are taken the oldest of the network (IPv4 /24, IPv6 /48) with most is closed.",
    ),
    (
        "server.header_timeout",
        "Time limit for the head of a request; three times as long for its body.",
    ),
    (
        "server.http_compression",
        "on: HTTP answers of 1 KiB and more are sent with zstd or gzip to clients that accept it, and cached ones are compressed once for all; off: as they are.",
    ),
    (
        "server.http2",
        "on: HTTP/2 over TLS (ALPN), and without TLS to clients that begin with it (prior knowledge); tls: over TLS only; off: HTTP/1.1 alone. WebSocket over HTTP/2 is RFC 8441.",
    ),
    (
        "server.http2_streams",
        "Most streams of an HTTP/2 connection at a time: requests, WebSockets and streams of events. Each of the last two counts as one more connection of its client.",
    ),
    (
        "server.proxy_protocol",
        "Requires a PROXY protocol header, version 2, at the start of every connection: it gives the client's address. Only for ports that only a load balancer can reach.",
    ),
    (
        "server.reuse_port",
        "Lets another process listen on the same port (SO_REUSEPORT), so that a new version starts before the old one drains.",
    ),
    (
        "tls.certificate",
        "PEM file with the server's certificate chain: the port then speaks wss:// and https:// only. Read again when it changes.",
    ),
    ("tls.key", "PEM file with the certificate's private key."),
    (
        "tls.client_ca",
        "PEM file with certificate authorities: every client must present a certificate signed by one of them.",
    ),
    (
        "methods.allowed",
        "Methods that clients may call, by name or by prefix with *; others get geth's \"does not exist\". A prefix covers methods that read; a method that signs, writes or administers (docs/methods.md) must be named in full.",
    ),
    (
        "methods.denied",
        "Exceptions to methods.allowed, by name or by prefix with *.",
    ),
    (
        "methods.unknown",
        "Namespaces in neither methods.allowed nor docs/methods.md: refuse, or serve (methods that read).",
    ),
    (
        "methods.development",
        "Commands to a development chain (evm, anvil, hardhat, ganache, devnet) and its unlocked accounts: local (served if every upstream is anvil, Hardhat, Ganache or headwater's devnet by its web3_clientVersion, listen is a loopback address and no proxy is trusted), or off.",
    ),
    (
        "methods.weights",
        "Cost of a call in limits.requests_per_second, by name or by prefix with *; 1 for all others. Entries add to these or replace them.",
    ),
    (
        "ready.max_head_age",
        "Age of the newest block above which /ready answers 503.",
    ),
    (
        "shutdown.grace",
        "Time for clients to disconnect after SIGTERM before they are cut off; close frames are spread over up to half of it.",
    ),
    ("log.format", "text or json."),
    (
        "log.filter",
        "A level, or directives such as \"info,headwater::upstream=debug\".",
    ),
    (
        "log.access",
        "Access log, one JSON object per line for each HTTP request, call and WebSocket connection: path of a file, stdout or stderr; empty for none. The file is opened again on SIGHUP and when it was moved (docs/operations.md).",
    ),
    (
        "log.access_sample",
        "Share of HTTP requests and WebSocket connections in the access log, from 0 to 1.",
    ),
    (
        "tracing.endpoint",
        "Collector of OpenTelemetry that spans are exported to by OTLP, such as http://127.0.0.1:4318 (http) or http://127.0.0.1:4317 (grpc); empty for no tracing. A path replaces /v1/traces (docs/tracing.md).",
    ),
    ("tracing.protocol", "http (protobuf over HTTP) or grpc."),
    (
        "tracing.sample",
        "Share of requests and blocks that are traced, from 0 to 1. A traceparent from a trusted proxy, or with a valid key or token, decides for its request instead.",
    ),
    ("tracing.service", "Name of the service in the exported spans."),
    (
        "tracing.ca",
        "PEM file with certificate authorities trusted for an https:// collector, in addition to the system's.",
    ),
    (
        "devnet.seed",
        "Embedded chain: seed; the same seed gives the same blocks.",
    ),
    ("devnet.block_time", "Embedded chain: time between blocks."),
    (
        "devnet.pending_rate",
        "Embedded chain: pending transactions per second.",
    ),
    (
        "devnet.transactions_per_block",
        "Embedded chain: transactions per block.",
    ),
    ("devnet.logs_per_transaction", "Embedded chain: logs per transaction."),
];
