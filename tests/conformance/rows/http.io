// PROTOCOL 1.15: the same over HTTP, on the same port.
//
// The section has no ids of rows; G is this file's.

let call = {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
let calls_30 = 30 * ${call}
let answer = {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== G1: a request is answered
POST /
body ${call}
=> 200
= content-type: application/json
<< ${answer}

== G1: a batch is answered
POST /
body [${call},{"jsonrpc":"2.0","method":"eth_chainId"},${call}]
=> 200
= content-type: application/json
<< [${answer},${answer}]

== G1: a notification is answered with nothing
POST /
body {"jsonrpc":"2.0","method":"eth_chainId"}
=> 200
<< 

== G1: what is no request is told so
POST /
body {}
=> 200
<< {"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"invalid request"}}
POST /
body []
=> 200
<< {"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"empty batch"}}

== G1: any path will do
differs: geth has one path
POST /v3/some-name?network=main
body ${call}
[headwater] => 200
[headwater] << ${answer}
[geth] => 404

== G2: there is no subscription over HTTP
POST /
body {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
=> 200
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"notifications not supported"}}

== G3: what is no JSON is told so
POST /
body hello
=> 200
<< {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}
POST /
body {"jsonrpc":"2.0","id":1
=> 200
<< {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}

== G4: nothing is answered with nothing
POST /
body 
=> 200
<< 

== G5: who looks whether somebody is there is told so
GET /
=> 200
<< 
OPTIONS /
=> 200
<< 

== G5: HEAD is GET without a body
only headwater: geth takes it for a request that says nothing of its content
HEAD /
=> 200

== G6: other methods are refused
PUT /
body ${call}
=> 405
<< method not allowed⏎
DELETE /
=> 405
<< method not allowed⏎

== G6: PATCH is another, too
differs: geth takes it for POST
PATCH /
body ${call}
[headwater] => 405
[headwater] << method not allowed⏎
[geth] => 200
[geth] << ${answer}

== G7: what is sent is said to be JSON
POST /
+ Content-Type: text/plain
body ${call}
=> 415
<< invalid content type, only application/json is supported⏎
POST /
- Content-Type
body ${call}
=> 415
<< invalid content type, only application/json is supported⏎

== G7: whatever else is said of it
POST /
+ Content-Type: application/json; charset=utf-8
body ${call}
=> 200
<< ${answer}
POST /
+ Content-Type: application/json-rpc
body ${call}
=> 200
<< ${answer}

== G8: a body above the limit is refused
only headwater: geth's limit is 5 MiB
config limits.max_body_bytes = "1KiB"
POST /
body ${call}
=> 200
<< ${answer}
POST /
body [${calls_30}]
=> 413
<< content length too large⏎
