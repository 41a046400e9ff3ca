// PROTOCOL 1.7: how a subscription ends.
//
// The table has no ids of rows; X is this file's.

== X1: what lives is ended, and is silent from then on
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":2,"result":"${b:id}"}
>> {"jsonrpc":"2.0","id":3,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":3,"result":true}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${b}","result":${:json}}}

== X1: each kind can be ended
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":2,"result":true}
>> {"jsonrpc":"2.0","id":3,"method":"eth_subscribe","params":["newPendingTransactions",true]}
<< {"jsonrpc":"2.0","id":3,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":4,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":4,"result":true}
! block

== X2: what nobody knows is not found
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":["0x1"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"subscription not found"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":["nonsense"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"subscription not found"}}

== X2: what was ended is not found
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":2,"result":true}
>> {"jsonrpc":"2.0","id":3,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":3,"error":{"code":-32000,"message":"subscription not found"}}

== X3: there is something to end
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe"}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"missing value for required argument 0"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":[]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"missing value for required argument 0"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":null}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"missing value for required argument 0"}}

== X4: null is nothing
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":[null]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"missing value for required argument 0"}}

== X5: an id is text
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":[1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 0: json: cannot unmarshal number into Go value of type rpc.ID"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":[true]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 0: json: cannot unmarshal bool into Go value of type rpc.ID"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":[{}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 0: json: cannot unmarshal object into Go value of type rpc.ID"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":[[]]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 0: json: cannot unmarshal array into Go value of type rpc.ID"}}

== X6: one is ended at a time
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":["0x1",1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}

== X6: what is there is read before what is too many is counted
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":[1,2]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 0: json: cannot unmarshal number into Go value of type rpc.ID"}}

== X7: parameters are a list
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":{}}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"non-array args"}}

== X8: any namespace will do
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"foo_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":2,"result":true}

== X9: over HTTP there is nothing to end
POST /
body {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":["0x1"]}
=> 200
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"subscription not found"}}

== X10: what is ended without an id is ended all the same
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","method":"eth_unsubscribe","params":["${a}"]}
<<nothing
>> {"jsonrpc":"2.0","id":2,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"subscription not found"}}
