// PROTOCOL 1.6: what a subscription is called. Of every id in every file: `0x`, lower case, no zeros ahead.
//
// The section has no ids of rows; I is this file's.

== I1: an id is a hexadecimal number without zeros ahead
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":2,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":3,"method":"eth_subscribe","params":["newPendingTransactions"]}
<< {"jsonrpc":"2.0","id":3,"result":"${:id}"}

== I2: the same subscription has another id each time, also on another connection
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":2,"result":"${b:id}"}
on another
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${c:id}"}
check ${a} != ${b}
check ${a} != ${c}
check ${b} != ${c}

== I3: an id that was given up is not used again
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":2,"result":true}
>> {"jsonrpc":"2.0","id":3,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":3,"result":"${b:id}"}
check ${a} != ${b}

== I4: an id belongs to its connection
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
on another
>> {"jsonrpc":"2.0","id":1,"method":"eth_unsubscribe","params":["${a}"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"subscription not found"}}

== I5, U1: an id lives as long as the connection, whatever becomes of the node's
only devnet: the others do not go away on command
config limits.max_connections = 100
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! away
! block
! back
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}
>> {"jsonrpc":"2.0","id":2,"method":"eth_unsubscribe","params":["${heads}"]}
<< {"jsonrpc":"2.0","id":2,"result":true}
