// PROTOCOL 1.5: what can be subscribed to, in geth's words.
//
// The sections without ids of their own have them here: S all kinds, N newHeads, P newPendingTransactions, Y syncing,
// T transactionReceipts, L logs.

let A = 0xaAaAaAaaAaAaAaaAaAAAAAAAAaaaAaAaAaaAaaAa
let T = 0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
let addresses_1000 = 1000 * "${A}"
let topics_1000 = 1000 * "${T}"
let hashes_200 = 200 * "${T}"

== S1: parameters are a list
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe"}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"non-array args"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":null}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"non-array args"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":{}}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"non-array args"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":"newHeads"}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"non-array args"}}

== S2: a subscription has a name
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":[]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"expected subscription name as first argument"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":[1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"expected subscription name as first argument"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":[null]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"expected subscription name as first argument"}}

== S3: a name that is not known is the node's to refuse
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["foo"]}
[devnet geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"foo\" subscription in eth namespace"}}
[anvil] << {"jsonrpc":"2.0","id":1,"error":${:json}}

== S3: a name that is not known is refused without a node where none is to be asked
only headwater: geth is the node
config subscriptions.passthrough = []
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["foo"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"foo\" subscription in eth namespace"}}

== S3: a name has one case
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["NewHeads"]}
[devnet geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"NewHeads\" subscription in eth namespace"}}
[anvil] << {"jsonrpc":"2.0","id":1,"error":${:json}}

== S3: an empty name is not known
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":[""]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"\" subscription in eth namespace"}}

== S3: a name with what HTML knows is not known
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["<&>"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"\u003c\u0026\u003e\" subscription in eth namespace"}}

== S4: a namespace is what stands before the suffix
>> {"jsonrpc":"2.0","id":1,"method":"foo_subscribe","params":["peerEvents"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"peerEvents\" subscription in foo namespace"}}

== S4: what a node tells its operator is not offered
>> {"jsonrpc":"2.0","id":1,"method":"admin_subscribe","params":["peerEvents"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"peerEvents\" subscription in admin namespace"}}

== S4: the namespace ends at the first of several lines below
>> {"jsonrpc":"2.0","id":1,"method":"eth_a_subscribe","params":["x"]}
[devnet geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"x\" subscription in eth namespace"}}
[anvil] << {"jsonrpc":"2.0","id":1,"error":${:json}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_a_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== S4: a namespace has one case
>> {"jsonrpc":"2.0","id":1,"method":"ETH_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \"newHeads\" subscription in ETH namespace"}}

== S4: a suffix has one case
>> {"jsonrpc":"2.0","id":1,"method":"eth_Subscribe","params":["newHeads"]}
[devnet geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method eth_Subscribe does not exist/is not available"}}
[anvil] << {"jsonrpc":"2.0","id":1,"error":${:json}}

== S5: nothing can be subscribed to over HTTP, whatever the parameters
POST /
body {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
=> 200
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"notifications not supported"}}
POST /
body {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":{}}
=> 200
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"notifications not supported"}}
POST /
body {"jsonrpc":"2.0","id":1,"method":"foo_subscribe"}
=> 200
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"notifications not supported"}}

== N1: newHeads takes nothing else
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== N2: newHeads with more is refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",{}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",true]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",null]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}

== N2: an object with an option of headwater is read strictly, any other is refused as ever
only headwater: geth has no such options
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",{"x":1}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",{"finality":"finalized"},1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",{"finality":"finalized","x":1}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: unknown field `x`, expected one of `after`, `fromBlock`, `finality`, `confirmations`, `include`"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",{"confirmations":0}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: confirmations must be a positive integer"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads",{"confirmations":3}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== T1, L4: the options come behind the filter, any other object there is refused as ever
only headwater: geth has no such options
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",null,{"x":1}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 2"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{},{"x":1}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 2"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{},{"after":null,"x":1}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 2: unknown field `x`, expected one of `after`, `fromBlock`, `finality`, `confirmations`, `include`"}}

== P1: newPendingTransactions tells hashes
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions"]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",false]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",null]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== P2: newPendingTransactions tells all where that is wanted
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",true]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== P3: whether all is wanted is no string
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions","true"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal string into Go value of type bool"}}

== P3: whether all is wanted is no object
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",{}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal object into Go value of type bool"}}

== P3: whether all is wanted is no number
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal number into Go value of type bool"}}

== P3: what is there is read before what is too many is counted
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",1,2]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal number into Go value of type bool"}}

== P4: newPendingTransactions with more is refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newPendingTransactions",true,1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 2"}}

== Y1: syncing takes nothing else
differs: geth says false only when it has synchronised once, which a chain of its own never does
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["syncing"]}
<< {"jsonrpc":"2.0","id":1,"result":"${syncing:id}"}
[headwater] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${syncing}","result":false}}

== Y2: syncing with more is refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["syncing",{}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 1"}}

== T1: transactionReceipts takes hashes, or nothing
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts"]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",null]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"unknown":1}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":null}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":[]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":["${T}","${T}"]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":[${hashes_200}]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== T2: hashes of transactions too many
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":[${hashes_200},"${T}"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"exceed max number of transaction hashes allowed per transactionReceipts subscription"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":[${hashes_200},"${T}"]},1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 2"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":[${hashes_200},"0x"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string has length 0, want 64 for common.Hash"}}

== T3: a hash of a transaction that cannot be read
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":["0xaa"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string has length 2, want 64 for common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"TRANSACTIONHASHES":["0xaa"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string has length 2, want 64 for common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":["0xaaa"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal hex string of odd length into Go struct field input.transactionHashes of type common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":["aa"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal hex string without 0x prefix into Go struct field input.transactionHashes of type common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":[null]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal non-string into Go struct field input.transactionHashes of type common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":["${T}",5]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal non-string into Go struct field input.transactionHashes of type common.Hash"}}

== T4: an argument of transactionReceipts that is none
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",{"transactionHashes":"${T}"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal string into Go struct field input.transactionHashes of type []common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",true]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal bool into Go value of type filters.input"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",["${T}"]]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal array into Go value of type filters.input"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["transactionReceipts",null,1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 2"}}

== L1: a filter may be empty
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L1: a filter may be missing or null
differs: all logs are wanted, as with reth and anvil: web3.js 4 sends null, and no library relies on geth's error
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs"]}
[headwater] << {"jsonrpc":"2.0","id":1,"result":"${:id}"}
[geth] << {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"missing value for required argument 1"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",null]}
[headwater] << {"jsonrpc":"2.0","id":1,"result":"${:id}"}
[geth] << {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"missing value for required argument 1"}}

== L2: fields that nobody knows are ignored
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"unknown":1,"limit":5}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L2: a field is known in any case of its letters
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"ADDRESS":5}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid addresses in query"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromblock":"pending"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"pending logs are not supported"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"Topics":[null]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L2: and it filters
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"ADDRESS":"${A}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
! block
<<nothing

== L3: a filter is no bool
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",true]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal bool into Go value of type filters.input"}}

== L3: a filter is no array
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",[]]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal array into Go value of type filters.input"}}

== L3: a filter is no string
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs","x"]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal string into Go value of type filters.input"}}

== L3: a filter is no number
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",5]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal number into Go value of type filters.input"}}

== L4: logs with more is refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{},1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 2"}}

== L4: what is there is read before what is too many is counted
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs","x",1]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal string into Go value of type filters.input"}}

== L5: an address may be missing, null or none
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":null}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":[]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L6: an address is read in any case
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${A}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"0XaAaAaAaaAaAaAaaAaAAAAAAAAaaaAaAaAaaAaaAa"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L7: several addresses may be wanted, one of them twice
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}","${contract}","${A}"]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L8: among addresses there is no null
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":[null]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: non-string address at index 0"}}

== L8: among addresses there is no number
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}",5]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: non-string address at index 1"}}

== L9: an address is no number or object
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":5}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid addresses in query"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":{}}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid addresses in query"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":true}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid addresses in query"}}

== L10: an address is not empty
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":""}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address: empty hex string"}}

== L10: nor is it empty among others
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}",""]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address at index 1: empty hex string"}}

== L10: an address is not 0x
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"0x"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address: hex has invalid length 0 after decoding; expected 20 for address"}}

== L10: nor is it 0x among others
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}","0x"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address at index 1: hex has invalid length 0 after decoding; expected 20 for address"}}

== L10: an address is not 0x123
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"0x123"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address: hex string of odd length"}}

== L10: nor is it 0x123 among others
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}","0x123"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address at index 1: hex string of odd length"}}

== L10: an address is not zz
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"zz"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address: hex string without 0x prefix"}}

== L10: nor is it zz among others
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}","zz"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address at index 1: hex string without 0x prefix"}}

== L10: an address is not 0xzz
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"0xzz"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address: invalid hex string"}}

== L10: nor is it 0xzz among others
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}","0xzz"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address at index 1: invalid hex string"}}

== L10: an address is not 0xaabb
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"0xaabb"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address: hex has invalid length 2 after decoding; expected 20 for address"}}

== L10: nor is it 0xaabb among others
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}","0xaabb"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address at index 1: hex has invalid length 2 after decoding; expected 20 for address"}}

== L10: what is no digit is named before what is missing
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${A} "}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid address: invalid hex string"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":["0xz"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid hex string"}}

== L11: a thousand addresses are enough
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":[${addresses_1000}]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L11: one more is too many
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":["${A}",${addresses_1000}]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"exceed max addresses or topics per search position"}}

== L12: topics may be missing, null or none
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":null}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L13: any position may be open
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[null,"${T}"]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[[],null,[null]]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[null,null,null,null]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L14: a topic may be one or several
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":["${T}",["${T}","${transfer}"]]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L15: what follows a null is not read
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[["${T}",null,"bad"]]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[[null,"bad"]]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L16: a topic is no number, object or list of lists
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[5]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid topic(s)"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[{}]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid topic(s)"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[["${T}",["${T}"]]]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid topic(s)"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[[5]]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid topic(s)"}}

== L17: a topic has 32 bytes
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":["0xaa"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex has invalid length 1 after decoding; expected 32 for topic"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[["0xaa"]]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex has invalid length 1 after decoding; expected 32 for topic"}}

== L17: a topic has no half byte
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":["0xaaa"]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string of odd length"}}

== L18: topics are a list
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":"${T}"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal string into Go struct field input.topics of type []interface {}"}}

== L19: there are four topics
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[null,null,null,null,null]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: exceed max topics"}}

== L19: places are counted before they are read
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[5,null,null,null,null]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: exceed max topics"}}

== L20: a thousand in a place are enough
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[[${topics_1000}]]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L20: one more is too many
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[["${T}",${topics_1000}]]}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: exceed max topics"}}

== L21: what is live is told live
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":null,"toBlock":null}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"latest"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"latest","toBlock":"latest"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"toBlock":"latest"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L22: what is bounded from below is told live
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x0"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x0","toBlock":"latest"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x1","toBlock":"0x1"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x1","toBlock":"0xffff"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L23: a range that ends before it begins is refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x2","toBlock":"0x1"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"toBlock":"0x5"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"latest","toBlock":"0x5"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"toBlock":"earliest"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}

== L23: a range of what is settled is refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"safe"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"finalized"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"toBlock":"safe"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"toBlock":"finalized"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid block range params"}}

== L24: the beginning is a bound
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"earliest"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"earliest","toBlock":"latest"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L25: what is pending is refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"pending"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"pending logs are not supported"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"toBlock":"pending"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"pending logs are not supported"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"latest","toBlock":"pending"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"pending logs are not supported"}}

== L26: a number is text
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":256}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string without 0x prefix"}}

== L26: a number is hexadecimal
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"256"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string without 0x prefix"}}

== L26: a number is not empty
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":""}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: empty hex string"}}

== L26: a number is nothing else
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":" 0x1 "}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string without 0x prefix"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":true}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string without 0x prefix"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"LATEST"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string without 0x prefix"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0xg"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: invalid hex string"}}

== L26: a number is not beyond all bounds
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x1ffffffffffffffff"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex number \u003e 64 bits"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0xffffffffffffffff"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: block number larger than int64"}}

== L27: a number has digits
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string \"0x\""}}

== L27: a number begins with no 0
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"toBlock":"0x0100"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex number with leading zero digits"}}

== L28: a block alone is ignored
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"${T}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"${T}","fromBlock":null}]}
<< {"jsonrpc":"2.0","id":1,"result":"${:id}"}

== L29: a block and a range are one too many
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"${T}","fromBlock":"0x1"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"${T}","toBlock":"latest"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other"}}

== L30: a block has 32 bytes
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"0xaa"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string has length 2, want 64 for common.Hash"}}

== L30: a block is a hash
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":5}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal non-string into Go struct field input.blockHash of type common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"aa"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal hex string without 0x prefix into Go struct field input.blockHash of type common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"0xaaa"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal hex string of odd length into Go struct field input.blockHash of type common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":""}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: hex string has length 0, want 64 for common.Hash"}}
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"0xzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"}]}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"invalid argument 1: json: cannot unmarshal invalid hex string into Go struct field input.blockHash of type common.Hash"}}

== L31: all logs of an address are told
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${contract}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}
check ${c.logIndex} == 0x2

== L31: none of another address is told
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"address":"${A}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<<nothing

== L32: none of another topic is told
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":["${T}"]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<<nothing

== L32: none of the right topic in another place is told
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[null,"${transfer}"]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<<nothing

== L33: a filter of more places than a log has topics does not match
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[null,null,null,null]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<<nothing

== L34: an open place counts, but matches anything
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"topics":[null]}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}
check ${c.logIndex} == 0x2

== L22: a bound in the future is one
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0xffffff","toBlock":"0xfffffff"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<<nothing

== L22: nothing is told of the past
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"fromBlock":"0x0"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}
check ${c.logIndex} == 0x2

== L28: a block that is ignored excludes nothing
>> {"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs",{"blockHash":"${T}"}]}
<< {"jsonrpc":"2.0","id":1,"result":"${logs:id}"}
! block
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${a:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${b:json}}}
<< {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${logs}","result":${c:json}}}
check ${a.blockHash} == ${block}
check ${c.logIndex} == 0x2
