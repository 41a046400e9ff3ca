// PROTOCOL 1.4: one message holds several requests.

let call = {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
let answer = {"jsonrpc":"2.0","id":1,"result":"${chain}"}
let calls_1000 = 1000 * ${call}
let answers_1000 = 1000 * ${answer}
let note = {"jsonrpc":"2.0","method":"eth_chainId"}

== B1: an empty batch is refused as a whole
>> []
<< {"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"empty batch"}}
>>escaped  [ \n] 
<< {"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"empty batch"}}

== B2: a batch of a thousand is answered
>> [${calls_1000}]
<< [${answers_1000}]

== B2: one of more is refused, under the id of its first call
>> [${note},{"jsonrpc":"2.0","id":"first","method":"eth_chainId"},${calls_1000}]
<< [{"jsonrpc":"2.0","id":"first","error":{"code":-32600,"message":"batch too large"}}]

== B3: answers stand in the order of the requests
>> [{"jsonrpc":"2.0","id":3,"method":"eth_getBlockByNumber","params":["latest",true]},{"jsonrpc":"2.0","id":"b","method":"eth_chainId"},{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}]
<< [{"jsonrpc":"2.0","id":3,"result":${:json}},{"jsonrpc":"2.0","id":"b","result":"${chain}"},{"jsonrpc":"2.0","id":1,"result":"${chain}"}]

== B3: a notification has no answer
>> [${note},${call},${note}]
<< [${answer}]

== B3: a batch of notifications is not answered
>> [${note},${note}]
<<nothing

== B3: a batch of one is answered with an array
>> [${call}]
<< [${answer}]

== B4: what is no request has an error in its place
let no_request = {"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"invalid request"}}
>> [5,${call},null,[],{"jsonrpc":"2.0","id":[],"method":"x"},{"id":7,"method":"x"},"x"]
<< [${no_request},${answer},${no_request},${no_request},${no_request},{"jsonrpc":"2.0","id":7,"error":{"code":-32600,"message":"invalid request"}},${no_request}]

== B6: each of two requests with one id is answered
>> [${call},${call},{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",1]}]
<< [${answer},${answer},{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}]

== B7: of a subscription in a batch the answer comes first
>> [{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]},{"jsonrpc":"2.0","id":2,"method":"eth_chainId"}]
<< [{"jsonrpc":"2.0","id":1,"result":"${heads:id}"},{"jsonrpc":"2.0","id":2,"result":"${chain}"}]
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}

== B7: two subscriptions in a batch are two
>> [{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]},{"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}]
<< [{"jsonrpc":"2.0","id":1,"result":"${a:id}"},{"jsonrpc":"2.0","id":2,"result":"${b:id}"}]
check ${a} != ${b}

== B8: a batch of responses is not answered
>> [{"jsonrpc":"2.0","id":1,"result":5},{"jsonrpc":"2.0","id":2,"error":{"code":1,"message":"x"}}]
<<nothing

== B8: responses among requests have no answer
>> [{"jsonrpc":"2.0","id":1,"result":5},${call}]
<< [${answer}]

== B9: nobody can end what the same batch begins
>> [{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]},{"jsonrpc":"2.0","id":2,"method":"eth_unsubscribe","params":["0x1"]}]
<< [{"jsonrpc":"2.0","id":1,"result":"${heads:id}"},{"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"subscription not found"}}]
>> [{"jsonrpc":"2.0","id":3,"method":"eth_unsubscribe","params":["${heads}"]},{"jsonrpc":"2.0","id":4,"method":"eth_unsubscribe","params":["${heads}"]}]
<< [{"jsonrpc":"2.0","id":3,"result":true},{"jsonrpc":"2.0","id":4,"error":{"code":-32000,"message":"subscription not found"}}]
