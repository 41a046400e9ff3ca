// PROTOCOL 5: what breaks clients. Z is this file's.
//
// Of every answer in every file the client checks: no reserved bits, no mask, UTF-8, control frames short and whole.

let call = {"jsonrpc":"2.0","id":1,"method":"eth_chainId"}
let longest = 125 x p
let answer = {"jsonrpc":"2.0","id":1,"result":"${chain}"}

== Z1: compression is for those who offer it
only headwater: geth has none
config delivery.compression = "on"
UPGRADE /
=> 101
=no sec-websocket-extensions
>> ${call}
<< ${answer}

== Z2: a reserved bit that was not agreed on ends the connection, also with compression
only headwater: geth has none
config delivery.compression = "on"
UPGRADE /
=> 101
>>frame c1 x
<<close 1002 unexpected reserved bits

== Z4: a pong has the ping's payload, up to the longest
>>frame 89 ${longest}
<<pong ${longest}

== Z4: a ping that is too long ends the connection
differs: each has its own words
>>frame 89 ${longest}p
[headwater] <<close 1002 control frame too long
[geth] <<close 1002 ${:any}

== Z5: after a goodbye nothing is answered
>>frame 88 \x03\xe8
>> ${call}
<<close 1000

== Z5: a code that may not be sent is not echoed
differs: each has its own words
>>frame 88 \x03\xee
[headwater] <<close 1002 ${:any}
[geth] <<close 1002 ${:any}

== Z7: what Firefox sends is an upgrade
UPGRADE /
+ Connection: keep-alive, Upgrade
+ Upgrade: websocket
=> 101
>> ${call}
<< ${answer}

== Z7: lower and upper case are an upgrade
UPGRADE /
+ connection: upgrade
+ upgrade: WEBSOCKET
=> 101
>> ${call}
<< ${answer}
