// PROTOCOL 1.2: what a message is made of.
//
// Of every answer in every file: text, unmasked, without reserved bits, one JSON value in a message; the client checks it.

let call = {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
// The longest ping; a request of exactly 1024 bytes.
let long_ping = 125 x p
let filler = 967 x m
let exactly = {"jsonrpc":"2.0","id":1,"method":"eth_chainId","more":"${filler}"}
let answer = {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== F1, F9: a request may be text or binary; the answer is text
>> ${call}
<< ${answer}
>>binary ${call}
<< ${answer}

== F2: a message may come in fragments
>>frame 01 {"jsonrpc":"2.0",
>>frame 00 "id":1,"meth
>>frame 00 
>>frame 80 od":"eth_chainId"}
<< ${answer}
>>frame 02 {"jsonrpc":"2.0",
>>frame 80 "id":1,"method":"eth_chainId"}
<< ${answer}

== F2: a ping between fragments is answered at once
>>frame 01 {"jsonrpc":"2.0",
>>frame 89 one
<<pong one
>>frame 00 "id":1,
>>frame 8a nobody asked
>>frame 89 two
<<pong two
>>frame 80 "method":"eth_chainId"}
<< ${answer}

== F2: a character may be cut in two
>>frame 01 {"jsonrpc":"2.0","id":"\xc3
>>frame 80 \xa9","method":"eth_chainId"}
<< {"jsonrpc":"2.0","id":"é","result":"${chain}"}

== F3: a ping is answered with its payload
>>frame 89
<<pong 
>>frame 89 0123456789abcdef
<<pong 0123456789abcdef
>>frame 89 ${long_ping}
<<pong ${long_ping}

== F4: a pong that nobody asked for is ignored
>>frame 8a
>>frame 8a hello
<<nothing

== F5: a goodbye is answered with its code
>>frame 88 \x03\xe8so long
<<close 1000

== F5: also one of an application's own
>>frame 88 \x0f\xa0
<<close 4000

== F5: going away is a goodbye
>>frame 88 \x03\xe9
<<close 1001

== F5: a goodbye without a code is answered without one
>>frame 88
<<close

== F6: a frame that is not masked ends the connection
>>raw 81 02 7b 7d
<<close 1002 incorrect mask flag

== F6: a reserved bit ends the connection
differs: geth says which bits
>>frame c1 ${call}
[headwater] <<close 1002 unexpected reserved bits
[geth] <<close 1002 unexpected reserved bits 0x40

== F6: a second reserved bit ends the connection
differs: geth says which bits
>>frame a1 ${call}
[headwater] <<close 1002 unexpected reserved bits
[geth] <<close 1002 unexpected reserved bits 0x20

== F6: an opcode that nobody knows ends the connection
differs: geth says which opcode
>>frame 83 ${call}
[headwater] <<close 1002 unknown opcode
[geth] <<close 1002 unknown opcode 3

== F6: a control frame in fragments ends the connection
differs: each has its own words
>>frame 09 x
[headwater] <<close 1002 ${:any}
[geth] <<close 1002 ${:any}

== F6: a continuation of nothing ends the connection
differs: each has its own words
>>frame 80 x
[headwater] <<close 1002 ${:any}
[geth] <<close 1002 ${:any}

== F6: a close frame of one byte ends the connection
differs: geth takes it for a goodbye without a code
>>frame 88 \x03
[headwater] <<close 1002 ${:any}
[geth] <<close

== F6: a close code that may not be sent ends the connection
differs: each has its own words
>>frame 88 \x03\xed
[headwater] <<close 1002 ${:any}
[geth] <<close 1002 ${:any}

== F7: text that is no UTF-8 ends the connection
differs: geth does not look, and answers with what stands for what cannot be read
>>escaped {"jsonrpc":"2.0","id":1,"method":"eth_\xff"}
[headwater] <<close 1007 invalid UTF-8
[geth] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method eth_${:any} does not exist/is not available"}}

== F7: binary that is no UTF-8 is no JSON
differs: geth does not look
>>frame 82 {"jsonrpc":"2.0","id":1,"method":"eth_\xff"}
[headwater] << {"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}
[geth] << {"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"the method eth_${:any} does not exist/is not available"}}

== F7: a close reason that is no UTF-8 ends the connection
differs: each has its own words
>>frame 88 \x03\xe8\xff
[headwater] <<close 1007 ${:any}
[geth] <<close 1002 ${:any}

== F8: a message above the limit ends the connection
only headwater: geth's limit is 32 MiB
config limits.max_message_bytes = "1KiB"
>> ${exactly}
<< ${answer}
>>escaped ${exactly}\n
<<close 1009 message too big

== F8: fragments above the limit end the connection
only headwater: geth's limit is 32 MiB
config limits.max_message_bytes = "1KiB"
>>frame 01 ${exactly}
>>frame 80 x
<<close 1009 message too big

== F8: the head of a message above the limit is enough
only headwater: geth's limit is 32 MiB
>>raw 81 ff 00 00 00 00 7f 00 00 00 37 fa 21 3d
<<close 1009 message too big
