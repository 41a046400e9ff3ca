// PROTOCOL 1.3: one message holds one request.
//
// geth ends the connection where it cannot read a message, headwater does not: that ends ethers' users for good.

let parse_error = {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}
let no_request = {"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"invalid request"}}
let name_2049 = 2049 x m
let no_request_7 = {"jsonrpc":"2.0","id":7,"error":{"code":-32600,"message":"invalid request"}}

== J1: white space around a message is ignored
>>escaped  \r\n\t{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}\n 
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}
>>escaped {\n"jsonrpc" :\t"2.0",\r\n "id": 1 , "method" : "eth_chainId", "params": [ ] }
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== J2: what follows the first value of a message is ignored
differs: geth did the same up to 1.17.7; since then it says that it cannot read the message, and ends the connection
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}x
[headwater] << {"jsonrpc":"2.0","id":1,"result":"${chain}"}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"invalid character 'x' after top-level value"}}
[geth] <<close 1000
[headwater] >> {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}{"jsonrpc":"2.0","id":2,"method":"eth_chainId"}
[headwater] << {"jsonrpc":"2.0","id":1,"result":"${chain}"}
[headwater] >> {"jsonrpc":"2.0","id":3,"method":"eth_chainId"}]
[headwater] << {"jsonrpc":"2.0","id":3,"result":"${chain}"}

== J3: what is no JSON gets an error
differs: geth tells more, and then ends the connection
>> hello
[headwater] << ${parse_error}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"invalid character 'h' looking for beginning of value"}}
[geth] <<close 1000

== J3: brackets that do not match are no JSON
differs: geth tells more, and then ends the connection
>> {]
[headwater] << ${parse_error}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"${:any}"}}
[geth] <<close 1000

== J3: a byte order mark is no JSON
differs: geth tells more, and then ends the connection
>>escaped \xef\xbb\xbf{}
[headwater] << ${parse_error}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"${:any}"}}
[geth] <<close 1000

== J4: half a request is no JSON
differs: geth tells more, and then ends the connection
>> {"jsonrpc":"2.0","id":1
[headwater] << ${parse_error}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"unexpected end of JSON input"}}
[geth] <<close 1000

== J4: half an array is no JSON
differs: geth tells more, and then ends the connection
>> [1
[headwater] << ${parse_error}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"unexpected end of JSON input"}}
[geth] <<close 1000

== J4: an empty message is no JSON
differs: geth tells more, and then ends the connection
>> 
[headwater] << ${parse_error}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"unexpected end of JSON input"}}
[geth] <<close 1000

== J4: a message of white space is no JSON
differs: geth tells more, and then ends the connection
>>escaped  \n
[headwater] << ${parse_error}
[geth] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"unexpected end of JSON input"}}
[geth] <<close 1000

== J5: JSON that is no object is no request
>> null
<< ${no_request}
>> 5
<< ${no_request}
>> -1.5e3
<< ${no_request}
>> "x"
<< ${no_request}
>> true
<< ${no_request}

== J5: an object without members is no request
>> {}
<< ${no_request}

== J6: a request says its version
>> {"id":7,"method":"eth_chainId"}
<< ${no_request_7}
>> {"id":7,"jsonrpc":"1.0","method":"eth_chainId"}
<< ${no_request_7}
>> {"id":7,"jsonrpc":2.0,"method":"eth_chainId"}
<< ${no_request_7}
>> {"id":"seven","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":"seven","error":{"code":-32600,"message":"invalid request"}}

== J6: a version may be escaped
>> {"jsonrpc":"2.\u0030","id":1,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== J6: a request has a method
>> {"id":7,"jsonrpc":"2.0"}
<< ${no_request_7}
>> {"id":7,"jsonrpc":"2.0","method":""}
<< ${no_request_7}
>> {"id":7,"jsonrpc":"2.0","method":null}
<< ${no_request_7}

== J6: a method is text
>> {"id":7,"jsonrpc":"2.0","method":5}
<< ${no_request_7}
>> {"id":7,"jsonrpc":"2.0","method":["eth_chainId"]}
<< ${no_request_7}

== J6: the id is read though what comes before it is wrong
>> {"jsonrpc":"2.0","method":5,"id":7}
<< ${no_request_7}

== J7: a request without an id is not answered
>> {"jsonrpc":"2.0","method":"eth_chainId"}
<<nothing
>> {"jsonrpc":"2.0","method":"eth_nothing","params":{}}
<<nothing
>> {"jsonrpc":"2.0","method":"eth_subscribe","params":["nothing"]}
<<nothing

== J7: a subscription without an id is none
differs: geth makes one, of which nobody knows the id
>> {"jsonrpc":"2.0","method":"eth_subscribe","params":["newHeads"]}
<<nothing
! block
[headwater] <<nothing
[geth] << {"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"${:id}","result":${:json}}}

== J8: an id of null is one
>> {"jsonrpc":"2.0","id":null,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":null,"result":"${chain}"}

== J9: an id comes back as it was written
>> {"jsonrpc":"2.0","id":0,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":0,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":"","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":"","result":"${chain}"}
>> {"jsonrpc":"2.0","id":-1,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":-1,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":1.50,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1.50,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":1e3,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1e3,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":1E+3,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1E+3,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":123456789012345678901234567890,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":true,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":true,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":false,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":false,"result":"${chain}"}

== J9: an id of text comes back as it was written
>> {"jsonrpc":"2.0","id":"a\u0041\"","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":"a\u0041\"","result":"${chain}"}
>> {"jsonrpc":"2.0","id":"5f6e-4","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":"5f6e-4","result":"${chain}"}

== J9: an id beyond ASCII comes back as it was written
>> {"jsonrpc":"2.0","id":"é€😀","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":"é€😀","result":"${chain}"}

== J9: an id with what HTML knows comes back as it was written
>> {"jsonrpc":"2.0","id":"<&>","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":"<&>","result":"${chain}"}

== J10: an object or an array is no id
>> {"jsonrpc":"2.0","id":{},"method":"eth_chainId"}
<< ${no_request}
>> {"jsonrpc":"2.0","id":[],"method":"eth_chainId"}
<< ${no_request}
>> {"jsonrpc":"2.0","id":[1],"method":"eth_chainId"}
<< ${no_request}
>> {"jsonrpc":"2.0","id":{"a":1},"method":"eth_chainId"}
<< ${no_request}

== J11: a response is ignored
>> {"jsonrpc":"2.0","id":1,"result":5}
<<nothing
>> {"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}
<<nothing

== J11: whatever it answers with
>> {"jsonrpc":"2.0","id":1,"result":null}
<<nothing
>> {"jsonrpc":"2.0","id":null,"result":5}
<<nothing
>> {"jsonrpc":"2.0","id":1,"error":null}
<<nothing
>> {"jsonrpc":"2.0","id":1,"method":"","result":5}
<<nothing
>> {"jsonrpc":"2.0","id":1,"method":null,"result":5}
<<nothing

== J11: what has parameters is no response
>> {"jsonrpc":"2.0","id":1,"params":[],"result":5}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"invalid request"}}

== J12: of two members of one name the last counts
>> {"jsonrpc":"2.0","id":1,"id":2,"method":"eth_x","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":2,"result":"${chain}"}

== J13: the case of a member's name does not matter
differs: geth did the same up to 1.17.7; since then a member of another case is not known
>> {"JSONRPC":"2.0","Id":3,"METHOD":"eth_chainId","pArAms":[]}
[headwater] << {"jsonrpc":"2.0","id":3,"result":"${chain}"}
[geth] << ${no_request}

== J14: members that nobody knows are ignored
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId","more":{"id":9},"also":[1]}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== J15: parameters may be missing, null or empty
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":null}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== J16: parameters by name are refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_getBlockByNumber","params":{"a":1}}
[devnet geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"non-array args"}}
// anvil has its own words, and they come through.
[anvil] << {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"${:any}"}}

== J17: a method that is not there is refused in words that ethers looks for
>> {"jsonrpc":"2.0","id":1,"method":"eth_nothing","params":[]}
[devnet geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method eth_nothing does not exist/is not available"}}
// anvil has its own words, and they come through.
[anvil] << {"jsonrpc":"2.0","id":1,"error":${:json}}

== J17: an escaped name is the same name
>> {"jsonrpc":"2.0","id":1,"method":"eth_\u0063hainId"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== J17: what HTML knows in its name is escaped
>> {"jsonrpc":"2.0","id":1,"method":"eth_<a>&é","params":[]}
[devnet] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method ${:any} does not exist/is not available"}}
[geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method eth_\u003ca\u003e\u0026é does not exist/is not available"}}
[anvil] << {"jsonrpc":"2.0","id":1,"error":${:json}}

== J17: a method without a namespace is not there
>> {"jsonrpc":"2.0","id":1,"method":"nothing"}
[devnet geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method nothing does not exist/is not available"}}
[anvil] << {"jsonrpc":"2.0","id":1,"error":${:json}}

== J18: a method's name has at most 2048 bytes
>> {"jsonrpc":"2.0","id":1,"method":"${name_2049}"}
<< {"jsonrpc":"2.0","id":1,"error":{"code":-32600,"message":"method name too long: 2049 \u003e 2048"}}

== J19: parameters too many are refused
>> {"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[1]}
[geth proxied] << {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"too many arguments, want at most 0"}}
// What a node's own methods take is the node's affair.
[devnet] << {"jsonrpc":"2.0","id":1,"result":"${chain}"}
[anvil] << {"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"${:any}"}}

== J20: a result stands behind the id, and alone
>> {"method":"eth_chainId","id":1,"jsonrpc":"2.0"}
<< {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== J20: a result of null is one
>> {"jsonrpc":"2.0","id":1,"method":"eth_getTransactionReceipt","params":["0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]}
<< {"jsonrpc":"2.0","id":1,"result":null}
