// PROTOCOL 1.8: what a subscriber is told. Of every event in every file: one in a message, these members in this order.
//
// The table has no ids of rows; E is this file's.

let geth_head = parentHash,sha3Uncles,miner,stateRoot,transactionsRoot,receiptsRoot,logsBloom,difficulty,number,gasLimit,gasUsed,timestamp,extraData,mixHash,nonce,baseFeePerGas,withdrawalsRoot,blobGasUsed,excessBlobGas,parentBeaconBlockRoot,requestsHash,blockAccessListHash,slotNumber,hash
let geth_log = address,topics,data,blockNumber,transactionHash,transactionIndex,blockHash,blockTimestamp,logIndex,removed
let anvil_log = address,topics,data,blockHash,blockNumber,blockTimestamp,transactionHash,transactionIndex,logIndex,removed
let geth_transaction = blockHash,blockNumber,blockTimestamp,from,gas,gasPrice,maxFeePerGas?,maxPriorityFeePerGas?,maxFeePerBlobGas?,hash,input,nonce,to,transactionIndex,value,type,accessList?,chainId?,blobVersionedHashes?,authorizationList?,v,r,s,yParity?

== E1: an event has no id, and its result behind its subscription
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}
check ${head.number} == ${number}

== E2: a head is the node's, whatever it has in it
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${heads:id}"}
! block
[devnet geth proxied] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:members geth_head}}}
[anvil] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${heads}","result":${head:json}}}
check ${head.hash} == ${block}

== E3: a log is the node's, and an event of its own
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${contract}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
[devnet geth proxied] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:members geth_log}}}
[devnet geth proxied] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:members geth_log}}}
[devnet geth proxied] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:members geth_log}}}
[anvil] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:members anvil_log}}}
[anvil] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:members anvil_log}}}
[anvil] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:members anvil_log}}}
// Byte for byte what the node says when it is asked.
ask known eth_getLogs [{"blockHash":"${block}"}]
check [${a},${b},${c}] == ${known}

== E4: of a transaction that is not mined the hash is told
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions"]}
<< {"jsonrpc":"2.0","id":1,"result":"${pendings:id}"}
! pending
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${pendings}","result":"${pending}"}}

== E5: or all of it
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",true]}
<< {"jsonrpc":"2.0","id":1,"result":"${pendings:id}"}
! pending
[devnet geth proxied] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${pendings}","result":${transaction:members geth_transaction}}}
[anvil] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${pendings}","result":${transaction:json}}}
check ${transaction.hash} == ${pending}
check ${transaction.blockHash} == null
check ${transaction.transactionIndex} == null

== E5: byte for byte what the node says when it is asked
only devnet anvil: geth has mined it by then
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",true]}
<< {"jsonrpc":"2.0","id":1,"result":"${pendings:id}"}
! pending
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${pendings}","result":${transaction:json}}}
ask known eth_getTransactionByHash ["${pending}"]
check ${transaction} == ${known}

== E6: a node that has what there is does not synchronise
only headwater: see Y1
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["syncing"]}
<< {"jsonrpc":"2.0","id":1,"result":"${syncing:id}"}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${syncing}","result":false}}

== E8: the receipts of a block are one event, each as the node says when it is asked
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts"]}
<< {"jsonrpc":"2.0","id":1,"result":"${receipts:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${receipts}","result":${told:json}}}
ask known eth_getBlockReceipts ["${block}"]
check ${told} == ${known}

== E8: of a block without those that are wanted nothing is told
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":["0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${receipts:id}"}
! block
<<nothing
