"""The logs of a contract with web3.py 8, each once and none left out, whatever becomes of the connection.

python resume_web3.py ws://127.0.0.1:9546 0xCONTRACT 0xFIRSTBLOCK
"""

import json
import sys

url, address, from_block = sys.argv[1:]

# docs/resume.md
import asyncio

from web3 import AsyncWeb3, WebSocketProvider
from web3.exceptions import Web3RPCError
from web3.utils.subscriptions import EthSubscription
from websockets import ConnectionClosed

logs = []  # what you have, oldest first; a table in production


def take(log):
    if log["removed"]:
        undo(lambda own: (own["blockHash"], own["logIndex"]) == (log["blockHash"], log["logIndex"]))
    else:
        logs.append(log)


def undo(is_dropped):
    at = next((at for at, own in enumerate(logs) if is_dropped(own)), len(logs))
    del logs[at:]  # and everything after it, which is built on it


def params():
    if not logs:
        return "logs", {"address": address}, {"fromBlock": from_block}
    last = {"blockHash": logs[-1]["blockHash"], "logIndex": hex(logs[-1]["logIndex"])}
    return "logs", {"address": address}, {"after": last}


def refused(error):
    if error["code"] != -32001:
        return  # the node is busy: try again
    last = logs[-1] if logs else None
    if not last or last["blockNumber"] < int(error["data"]["oldestBlock"], 16):
        raise RuntimeError("away for too long")
    undo(lambda own: own["blockHash"] == last["blockHash"])  # dropped and forgotten: resume after the block before


async def follow():
    async for w3 in AsyncWeb3(WebSocketProvider(url)):
        try:
            await w3.subscription_manager.subscribe(EthSubscription(params()))
            async for message in w3.socket.process_subscriptions():
                take(message["result"])
        except ConnectionClosed:
            pass
        except Web3RPCError as error:
            refused(error.rpc_response["error"])
        await asyncio.sleep(1)
# end


async def show():
    """Shows what there is whenever it changes."""
    shown = None
    while True:
        now = json.dumps([f"{log['blockHash'].to_0x_hex()}/{log['logIndex']}" for log in logs])
        if now != shown:
            print(now, flush=True)
            shown = now
        await asyncio.sleep(0.05)


async def main():
    await asyncio.gather(follow(), show())


asyncio.run(main())
