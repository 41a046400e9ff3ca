"""The bare WebSockets of `websockets` and `aiohttp`: pipe.py websockets|aiohttp URL [deflate].

On stdin a JSON string per line is a message to send; on stdout a line each says what happens: {"open": true},
{"text": ..}, {"binary": ..}, {"closed": code}.
"""

import asyncio
import json
import sys


def say(**what):
    print(json.dumps(what), flush=True)


async def over_websockets(url, _deflate, outbox):
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    # Its own way to come back: the loop gives the next connection when the body goes on to it.
    async for socket in connect(url):
        sending = asyncio.create_task(forward(outbox, socket.send))
        say(open=True)
        try:
            while True:
                message = await socket.recv()
                say(**({"text": message} if isinstance(message, str) else {"binary": message.decode()}))
        except ConnectionClosed as closed:
            say(closed=closed.rcvd and closed.rcvd.code)
        finally:
            sending.cancel()


async def over_aiohttp(url, deflate, outbox):
    import aiohttp

    # aiohttp offers permessage-deflate only when told a window.
    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15 if deflate else 0) as socket:
        sending = asyncio.create_task(forward(outbox, socket.send_str))
        say(open=True)
        async for message in socket:
            say(**({"text": message.data} if message.type is aiohttp.WSMsgType.TEXT else {"binary": message.data.decode()}))
        say(closed=socket.close_code)
        sending.cancel()


async def forward(outbox, send):
    while True:
        await send(await outbox.get())


async def read(outbox):
    lines = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        outbox.put_nowait(json.loads(line))


async def main(library, url, deflate=None):
    outbox = asyncio.Queue()
    reading = asyncio.create_task(read(outbox))
    await {"websockets": over_websockets, "aiohttp": over_aiohttp}[library](url, deflate, outbox)
    await reading


asyncio.run(main(*sys.argv[1:]))
