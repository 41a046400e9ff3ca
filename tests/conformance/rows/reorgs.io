// PROTOCOL 1.10: what is told when the chain changes its mind. ${x.undone} is the log ${x} with `removed` true.

let event = {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription"

== R2: a head that the node did not announce is told in its place
only devnet: the others announce what they have
config limits.max_connections = 100
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! skips heads
! block
! block
! block
<< ${event}:"${heads}","result":${a:json}}}
<< ${event}:"${heads}","result":${b:json}}}
<< ${event}:"${heads}","result":${c:json}}}
check ${b.parentHash} == ${a.hash}
check ${c.parentHash} == ${b.hash}
check ${c.hash} == ${block}

== R2: of a reorg each head is told, oldest first, though the node tells the last alone
only devnet: the others announce each
config limits.max_connections = 100
! tip only
! block
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
<< ${event}:"${heads}","result":${old_a:json}}}
! block
<< ${event}:"${heads}","result":${old_b:json}}}
! reorg 2
<< ${event}:"${heads}","result":${new_a:json}}}
<< ${event}:"${heads}","result":${new_b:json}}}
check ${new_a.parentHash} == ${old_a.parentHash}
check ${new_b.parentHash} == ${new_a.hash}
check ${new_b.hash} == ${block}
check ${new_a.hash} != ${old_a.hash}

== R3: logs that were told are taken back before others take their place
only devnet anvil: geth's own chain can be set back, but then says nothing of it, and what comes next is chance
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${contract}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< ${event}:"${logs}","result":${a:json}}}
<< ${event}:"${logs}","result":${b:json}}}
<< ${event}:"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}
! reorg 1
<< ${event}:"${logs}","result":${a.undone}}}
<< ${event}:"${logs}","result":${b.undone}}}
<< ${event}:"${logs}","result":${c.undone}}}
<< ${event}:"${logs}","result":${x:json}}}
<< ${event}:"${logs}","result":${y:json}}}
<< ${event}:"${logs}","result":${z:json}}}
check ${x.blockHash} ${x.logIndex} ${x.removed} == ${block} 0x0 false
check ${z.blockHash} ${z.logIndex} ${z.removed} == ${block} 0x2 false

== R3: also where the node does not say so
only devnet: anvil is a node that does not say so, in every case
config limits.max_connections = 100
! keeps removals
! block
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${contract}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< ${event}:"${logs}","result":${a:json}}}
<< ${event}:"${logs}","result":${b:json}}}
<< ${event}:"${logs}","result":${c:json}}}
! reorg 1
<< ${event}:"${logs}","result":${a.undone}}}
<< ${event}:"${logs}","result":${b.undone}}}
<< ${event}:"${logs}","result":${c.undone}}}
<< ${event}:"${logs}","result":${x:json}}}
<< ${event}:"${logs}","result":${y:json}}}
<< ${event}:"${logs}","result":${z:json}}}
check ${x.blockHash} == ${block}

== R3: of two blocks the older is taken back first
only devnet anvil: geth's own chain can be set back, but then says nothing of it, and what comes next is chance
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< ${event}:"${logs}","result":${a:json}}}
<< ${event}:"${logs}","result":${b:json}}}
<< ${event}:"${logs}","result":${c:json}}}
! block
<< ${event}:"${logs}","result":${d:json}}}
<< ${event}:"${logs}","result":${e:json}}}
<< ${event}:"${logs}","result":${f:json}}}
! reorg 2
<< ${event}:"${logs}","result":${a.undone}}}
<< ${event}:"${logs}","result":${b.undone}}}
<< ${event}:"${logs}","result":${c.undone}}}
<< ${event}:"${logs}","result":${d.undone}}}
<< ${event}:"${logs}","result":${e.undone}}}
<< ${event}:"${logs}","result":${f.undone}}}
<< ${event}:"${logs}","result":${u:json}}}
<< ${event}:"${logs}","result":${v:json}}}
<< ${event}:"${logs}","result":${w:json}}}
<< ${event}:"${logs}","result":${x:json}}}
<< ${event}:"${logs}","result":${y:json}}}
<< ${event}:"${logs}","result":${z:json}}}
check ${u.blockNumber} ${x.blockNumber} == ${a.blockNumber} ${d.blockNumber}
check ${z.blockHash} ${z.logIndex} == ${block} 0x2

== R3: what was not told is not taken back
only devnet anvil: geth's own chain can be set back, but then says nothing of it, and what comes next is chance
! block
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":["0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":2,"result":"${heads:id}"}
! reorg 1
<< ${event}:"${heads}","result":${head:json}}}
check ${head.hash} == ${block}

== R4: a head that the node tells twice is told once
only devnet: the others tell each once
config limits.max_connections = 100
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! repeats heads
! block
<< ${event}:"${heads}","result":${a:json}}}
check ${a.hash} == ${block}
! block
<< ${event}:"${heads}","result":${b:json}}}
check ${b.hash} == ${block}

== R4: a block that comes back is told again
only devnet: the others do not go back on command
config limits.max_connections = 100
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
<< ${event}:"${heads}","result":${a:json}}}
! reorg 1
<< ${event}:"${heads}","result":${b:json}}}
check ${b.hash} == ${block}
check ${a.hash} != ${b.hash}
! switches back
<< ${event}:"${heads}","result":${a}}}

== R5: of what is pending nothing is taken back
only devnet: what anvil puts into its new blocks is pending first, and geth changes its mind on no command
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions"]}
<< {"jsonrpc":"2.0","id":1,"result":"${pendings:id}"}
>> {"jsonrpc":"2.0","id":2,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":2,"result":"${heads:id}"}
! pending
<< ${event}:"${pendings}","result":"${pending}"}}
! block
<< ${event}:"${heads}","result":${old:json}}}
check ${old.hash} == ${block}
! reorg 1
<< ${event}:"${heads}","result":${new:json}}}
check ${new.hash} == ${block}

== R5: of receipts nothing is taken back, and those of the new block are told
only devnet anvil: geth's own chain can be set back, but then says nothing of it, and what comes next is chance
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts"]}
<< {"jsonrpc":"2.0","id":1,"result":"${receipts:id}"}
! block
<< ${event}:"${receipts}","result":${old:json}}}
! reorg 1
<< ${event}:"${receipts}","result":${new:json}}}
ask known eth_getBlockReceipts ["${block}"]
check ${new} == ${known}
check ${old} != ${new}
