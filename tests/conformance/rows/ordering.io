// PROTOCOL 1.9: in which order it is told.

== O1: the answer comes before the events, also before one that is there at once
only headwater: geth says this only when it has synchronised once
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["syncing"]}
<< {"jsonrpc":"2.0","id":1,"result":"${syncing:id}"}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${syncing}","result":false}}

== O1: the answer comes before the events
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}

== O3: heads come in order, each once
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${a:json}}}
check ${a.hash} == ${block}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${b:json}}}
check ${b.hash} == ${block}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${c:json}}}
check ${c.hash} == ${block}

== O3: each head follows the one before it
only devnet anvil: geth makes a block without transactions now and then, of which this suite does not look at the head
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
! block
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${c:json}}}
check ${b.parentHash} == ${a.hash}
check ${c.parentHash} == ${b.hash}
check ${c.hash} == ${block}

== O3: logs come in order, each once
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.logIndex} ${b.logIndex} ${c.logIndex} == 0x0 0x1 0x2
check ${a.blockHash} == ${block}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.logIndex} ${b.logIndex} ${c.logIndex} == 0x0 0x1 0x2
check ${a.blockHash} == ${block}

== O4: a head comes before its logs, whichever was wanted first
only headwater: geth promises no order among subscriptions
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":2,"result":"${heads:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}
check ${a.logIndex} ${b.logIndex} ${c.logIndex} == 0x0 0x1 0x2
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}

== O4: the receipts of a block come behind its logs, and before the next head
only headwater: geth promises no order among subscriptions
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts"]}
<< {"jsonrpc":"2.0","id":1,"result":"${receipts:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":2,"result":"${logs:id}"}
>> {"jsonrpc":"2.0","id":3,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":3,"result":"${heads:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${receipts}","result":${told:json}}}
ask known eth_getBlockReceipts ["${block}"]
check ${told} == ${known}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${receipts}","result":${told:json}}}

== O5: two equal subscriptions on one connection are told each
only headwater: geth promises no order among subscriptions
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${a:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":2,"result":"${b:id}"}
check ${a} != ${b}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${first:id}","result":${head:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${second:id}","result":${head}}}
check ${head.hash} == ${block}
check ${first} != ${second}

== O6: what happens after the answer is told
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${contract}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}
