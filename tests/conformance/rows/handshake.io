// PROTOCOL 1.1: a connection becomes a WebSocket.
//
// UPGRADE sends what a browser sends; `+` adds a header to it or replaces one, `-` takes one away.

// RFC 6455's own example: what an upgrade without a key of its own is accepted with.
// A key, and what of it stands in a configuration.
let key = hw_conformance00000000000000000000000000000000
let key_hash = sha256:a6d818ed68a8e006fe6bff6e3957ef5a26734c13b4334f1192d0415d0155f393
let accept = s3pPLMBiTxaQ9kYGzzhZRbK+xOo=

== H1: an upgrade is answered with three headers
differs: headwater says the date as well, as reth does
UPGRADE /
=> 101
= upgrade: websocket
= connection: Upgrade
= sec-websocket-accept: ${accept}
[geth] =only upgrade, connection, sec-websocket-accept
[headwater] =only upgrade, connection, sec-websocket-accept, x-request-id, date
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== H1: the words of an upgrade are known in any case
UPGRADE /
+ connection: UPGRADE
+ UPGRADE: WebSocket
=> 101
= sec-websocket-accept: ${accept}

== H1: an upgrade may be one of several things that are wanted of the connection
UPGRADE /
+ Connection: keep-alive, Upgrade
=> 101
= sec-websocket-accept: ${accept}

== H1: what asks for no upgrade is none
GET /
+ Connection: keep-alive
+ Upgrade: websocket
=> 200
<< 

== H2: a query does not matter
UPGRADE /?network=main
=> 101

== H2: any path will do, for a path may hold a key
differs: geth has one path
UPGRADE /v3/some-name?network=main
[headwater] => 101
[geth] => 404
[geth] << not found⏎

== H3: who has no origin is no page, and is let in
UPGRADE /
- Origin
=> 101

== H4: a page on this machine is let in
UPGRADE /
+ Origin: http://localhost
=> 101
=no access-control-allow-origin

== H4: whatever its port
UPGRADE /
+ Origin: http://localhost:3000
=> 101

== H4: a page that is listed is let in, and no other
only headwater: geth is told of its pages when it starts
config server.origins = ["https://app.example"]
UPGRADE /
+ Origin: https://app.example
=> 101
UPGRADE /
+ Origin: https://APP.example:8443
=> 101
UPGRADE /
+ Origin: http://app.example
=> 403
UPGRADE /
+ Origin: http://localhost
=> 403

== H4: every page is let in where that is said
only headwater: geth is told of its pages when it starts
config server.origins = ["*"]
UPGRADE /
+ Origin: https://evil.example
=> 101

== H5: another page is not let in
UPGRADE /
+ Origin: https://evil.example
=> 403
<< Forbidden⏎

== H5: a page without a name is not let in
UPGRADE /
+ Origin: null
=> 403
<< Forbidden⏎

== H5: a name that begins like ours is another
UPGRADE /
+ Origin: http://localhost.evil.example
=> 403
<< Forbidden⏎

== H6: an offered protocol is not taken up
UPGRADE /
+ Sec-WebSocket-Protocol: eth, json
=> 101
=no sec-websocket-protocol

== H7: offered compression is declined by silence
UPGRADE /
+ Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits
=> 101
=no sec-websocket-extensions
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== H7: where it is switched on, it is taken up by those who offer it
only headwater: geth has none
config delivery.compression = "on"
UPGRADE /
+ Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits
=> 101
= sec-websocket-extensions: permessage-deflate${:any}
UPGRADE /
=> 101
=no sec-websocket-extensions

== H8: another version of the protocol is refused
UPGRADE /
+ Sec-WebSocket-Version: 8
=> 400
= sec-websocket-version: 13
<< Bad Request⏎

== H8: an upgrade without a version is refused
UPGRADE /
- Sec-WebSocket-Version
=> 400
= sec-websocket-version: 13
<< Bad Request⏎

== H8: an upgrade without a key is refused
UPGRADE /
- Sec-WebSocket-Key
=> 400
= sec-websocket-version: 13
<< Bad Request⏎

== H8: a key that is none is refused
differs: geth takes any text; RFC 6455 section 4.2.1 wants 16 bytes
UPGRADE /
+ Sec-WebSocket-Key: c2hvcnQ=
[headwater] => 400
[headwater] << Bad Request⏎
[geth] => 101

== H9: who proves who they are, where nobody asked, is let in
UPGRADE /
+ Authorization: Basic dXNlcjpwYXNz
=> 101

== H9: who does not, where it is asked, is told so before the upgrade
only headwater: geth asks on another port only
config auth.required = true
config keys.alice.hash = "${key_hash}"
UPGRADE /
=> 401
= www-authenticate: Bearer
UPGRADE /
+ Authorization: Bearer nonsense
=> 401
UPGRADE /
+ Authorization: Bearer ${key}
=> 101

== H10: one connection more than there is room for is told to come again
only headwater: geth has no such limit
config limits.max_connections = 2
UPGRADE /
=> 101
on second
UPGRADE /
=> 101
on third
UPGRADE /
=> 429
= retry-after: ${:any}
<< Too many connections. Please try again later.⏎
