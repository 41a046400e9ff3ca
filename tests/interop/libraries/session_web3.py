"""web3.py on a session, driven by tests/sessions: subscribes to heads and all logs, and prints what the application gets,
an event a line. The second argument is the pause after each event, in milliseconds."""

import sys

# docs/sessions.md
import asyncio
import secrets
import time

from web3 import AsyncWeb3, WebSocketProvider
from websockets import ConnectionClosed


def with_session(url):
    return f"{url}/?session={int(time.time())}-{secrets.token_hex(8)}"


async def follow(url, take):
    async for w3 in AsyncWeb3(WebSocketProvider(url)):
        try:
            await w3.eth.subscribe("newHeads")
            await w3.eth.subscribe("logs", {})
            async for message in w3.socket.process_subscriptions():
                take(message["result"])
        except ConnectionClosed:
            pass  # the loop connects again, with the same URL


# end

slow = int(sys.argv[2]) / 1000


def take(event):
    if "logIndex" in event:
        kind = "undo" if event["removed"] else "log"
        print(f"{kind} {event['blockHash'].to_0x_hex()} {event['logIndex']:#x}", flush=True)
    else:
        print(f"head {event['hash'].to_0x_hex()} 0x0", flush=True)
    # A slow application keeps the process busy, as one does that computes.
    time.sleep(slow)


asyncio.run(follow(sys.argv[1], take))
