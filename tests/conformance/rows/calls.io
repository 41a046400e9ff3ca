// PROTOCOL 1.13: everything else is asked on the same connection, and answered by the node.

let event = {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription"

== C1: what libraries ask when they connect is answered
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}
ask known net_version []
>> {"jsonrpc":"2.0","id":2,"method":"net_version","params":[]}
<< {"jsonrpc":"2.0","id":2,"result":${known}}
ask known web3_clientVersion []
>> {"jsonrpc":"2.0","id":3,"method":"web3_clientVersion","params":[]}
<< {"jsonrpc":"2.0","id":3,"result":${known}}
>> {"jsonrpc":"2.0","id":4,"method":"eth_syncing","params":[]}
<< {"jsonrpc":"2.0","id":4,"result":false}
>> {"jsonrpc":"2.0","id":5,"method":"eth_blockNumber","params":[]}
<< {"jsonrpc":"2.0","id":5,"result":"${:hex}"}

== C1 alone: what libraries ask when they connect is answered without a node, too
only devnet: the others do not go away on command
config calls.head_wait_timeout = "100ms"
ask network net_version []
ask version web3_clientVersion []
ask accounts eth_accounts []
ask number eth_blockNumber []
>> [{"jsonrpc":"2.0","id":1,"method":"net_version"},{"jsonrpc":"2.0","id":2,"method":"web3_clientVersion"},{"jsonrpc":"2.0","id":3,"method":"eth_accounts"}]
<< [{"jsonrpc":"2.0","id":1,"result":${network}},{"jsonrpc":"2.0","id":2,"result":${version}},{"jsonrpc":"2.0","id":3,"result":${accounts}}]
! away
>> [{"jsonrpc":"2.0","id":4,"method":"net_version"},{"jsonrpc":"2.0","id":5,"method":"web3_clientVersion"},{"jsonrpc":"2.0","id":6,"method":"eth_accounts"}]
<< [{"jsonrpc":"2.0","id":4,"result":${network}},{"jsonrpc":"2.0","id":5,"result":${version}},{"jsonrpc":"2.0","id":6,"result":${accounts}}]
>> [{"jsonrpc":"2.0","id":7,"method":"eth_chainId"},{"jsonrpc":"2.0","id":8,"method":"eth_blockNumber"}]
<< [{"jsonrpc":"2.0","id":7,"result":"${chain}"},{"jsonrpc":"2.0","id":8,"result":${number}}]
>>frame 88
<<close

== C2: who was told of a head is not told an older number
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
<< ${event}:"${heads}","result":${head:json}}}
check ${head.number} == ${number}
>> {"jsonrpc":"2.0","id":2,"method":"eth_blockNumber"}
[devnet anvil] << {"jsonrpc":"2.0","id":2,"result":"${number}"}
// geth may have made one more, without transactions.
[geth proxied] << {"jsonrpc":"2.0","id":2,"result":"${:hex}"}

== C3: what was told can be asked for
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< ${event}:"${logs}","result":${a:json}}}
<< ${event}:"${logs}","result":${b:json}}}
<< ${event}:"${logs}","result":${c:json}}}
ask known eth_getBlockByHash ["${block}",true]
>> {"jsonrpc":"2.0","id":2,"method":"eth_getBlockByHash","params":["${a.blockHash}",true]}
<< {"jsonrpc":"2.0","id":2,"result":${known}}
>> {"jsonrpc":"2.0","id":3,"method":"eth_getBlockByNumber","params":["${number}",true]}
<< {"jsonrpc":"2.0","id":3,"result":${known}}
ask known eth_getLogs [{"blockHash":"${block}"}]
>> {"jsonrpc":"2.0","id":4,"method":"eth_getLogs","params":[{"blockHash":"${block}"}]}
<< {"jsonrpc":"2.0","id":4,"result":${known}}
>> {"jsonrpc":"2.0","id":5,"method":"eth_getTransactionReceipt","params":["${a.transactionHash}"]}
<< {"jsonrpc":"2.0","id":5,"result":${receipt:json}}
check ${receipt.blockHash} == ${block}

== C4: a filter is asked for its changes on the connection that made it
>> {"jsonrpc":"2.0","id":1,"method":"eth_newBlockFilter","params":[]}
<< {"jsonrpc":"2.0","id":1,"result":"${filter:id}"}
! block
>> {"jsonrpc":"2.0","id":2,"method":"eth_getFilterChanges","params":["${filter}"]}
[devnet anvil] << {"jsonrpc":"2.0","id":2,"result":["${block}"]}
[geth proxied] << {"jsonrpc":"2.0","id":2,"result":[${:any}]}
>> {"jsonrpc":"2.0","id":3,"method":"eth_newFilter","params":[{"address":"${contract}"}]}
<< {"jsonrpc":"2.0","id":3,"result":"${logs:id}"}
! block
ask known eth_getLogs [{"blockHash":"${block}"}]
>> {"jsonrpc":"2.0","id":4,"method":"eth_getFilterChanges","params":["${logs}"]}
<< {"jsonrpc":"2.0","id":4,"result":${known}}
>> {"jsonrpc":"2.0","id":5,"method":"eth_getFilterChanges","params":["${logs}"]}
<< {"jsonrpc":"2.0","id":5,"result":[]}
>> {"jsonrpc":"2.0","id":6,"method":"eth_uninstallFilter","params":["${logs}"]}
<< {"jsonrpc":"2.0","id":6,"result":true}
>> {"jsonrpc":"2.0","id":7,"method":"eth_uninstallFilter","params":["${filter}"]}
<< {"jsonrpc":"2.0","id":7,"result":true}

== C5: an error is the node's, with its data
// What reverts: devnet's transferFrom, the other nodes' refusePlainly.
[devnet] ask known eth_call [{"to":"${contract}","data":"0x23b872dd"},"latest"]
[devnet] >> {"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{"to":"${contract}","data":"0x23b872dd"},"latest"]}
[anvil geth proxied] ask known eth_call [{"to":"${contract}","data":"0x64e1c79d"},"latest"]
[anvil geth proxied] >> {"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{"to":"${contract}","data":"0x64e1c79d"},"latest"]}
<< {"jsonrpc":"2.0","id":1,"error":${error:json}}
check ${error} == ${known}
check ${error.code} == 3

== C5: also for parameters that the node cannot read
only devnet geth proxied: anvil says another thing on each transport
ask known eth_getBlockByNumber ["nonsense",false]
>> {"jsonrpc":"2.0","id":1,"method":"eth_getBlockByNumber","params":["nonsense",false]}
<< {"jsonrpc":"2.0","id":1,"error":${known}}
