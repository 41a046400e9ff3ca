// PROTOCOL 1.14: what headwater itself has to say.
//
// The table has no ids of rows; K is this file's. Of all of it, geth itself has nothing to say.

let key = hw_conformance00000000000000000000000000000000
let key_hash = sha256:a6d818ed68a8e006fe6bff6e3957ef5a26734c13b4334f1192d0415d0155f393

== K1: a subscription above the limit is refused
only headwater: geth has no such limit
config limits.max_subscriptions = 1
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":2,"error":{"code":-32005,"message":"limit exceeded${:any}"}}
>> {"jsonrpc":"2.0","id":3,"method":"eth_unsubscribe","params":["${heads}"]}
<< {"jsonrpc":"2.0","id":3,"result":true}
>> {"jsonrpc":"2.0","id":4,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":4,"result":"${:id}"}

== K1: a request above the limit is refused
only headwater: geth has no such limit
config limits.requests_per_second = 1
config limits.request_burst = 1000
// Whoever has spent all has to wait for a quarter of an hour.
config methods.weights.eth_chainId = 1000
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":2,"error":{"code":-32005,"message":"limit exceeded","data":{"retryAfterMs":${:json}}}}
>> [{"jsonrpc":"2.0","id":3,"method":"eth_chainId"}]
<< [{"jsonrpc":"2.0","id":3,"error":{"code":-32005,"message":"limit exceeded","data":{"retryAfterMs":${:json}}}}]
>>frame 88
<<close

== K2: without a node a call fails
only devnet: the others do not go away on command
config calls.head_wait_timeout = "100ms"
>> {"jsonrpc":"2.0","id":1,"method":"eth_getTransactionCount","params":["${account}","pending"]}
<< {"jsonrpc":"2.0","id":1,"result":"${:hex}"}
! away
>> {"jsonrpc":"2.0","id":2,"method":"eth_getTransactionCount","params":["${account}","pending"]}
<< {"jsonrpc":"2.0","id":2,"error":{"code":-32603,"message":"upstream unavailable"}}
// What headwater does itself, it still does.
>> {"jsonrpc":"2.0","id":3,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":3,"result":"${heads:id}"}
>> {"jsonrpc":"2.0","id":4,"method":"eth_unsubscribe","params":["${heads}"]}
<< {"jsonrpc":"2.0","id":4,"result":true}
>>frame 88
<<close

== K3: a call that the node does not answer fails in the end
only devnet: the others are not slow on command
config node.request_timeout = "200ms"
! slow
>> {"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":["${account}","latest"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"request timed out"}}
>>frame 88
<<close

== K5: a kind that is not allowed is not known
only headwater: geth knows no keys
config auth.required = true
config keys.alice.hash = "${key_hash}"
config keys.alice.subscriptions = ["newHeads"]
UPGRADE /
+ Authorization: Bearer ${key}
=> 101
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":2,"error":{"code":-32601,"message":"no \"logs\" subscription in eth namespace"}}

== K6: a method that is not allowed is not there
only headwater: geth is asked by whoever reaches it
config methods.development = "off"
>> {"jsonrpc":"2.0","id":1,"method":"debug_traceBlockByNumber","params":["latest"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method debug_traceBlockByNumber does not exist/is not available"}}
>> {"jsonrpc":"2.0","id":2,"method":"eth_sendTransaction","params":[{}]}
<< {"jsonrpc":"2.0","id":2,"error":{"code":-32601,"message":"the method eth_sendTransaction does not exist/is not available"}}

== K7: there is no subscription over HTTP
POST /
body [{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{}]},{"jsonrpc":"2.0","id":2,"method":"eth_chainId"}]
=> 200
<< [{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"notifications not supported"}},{"jsonrpc":"2.0","id":2,"result":"${chain}"}]
