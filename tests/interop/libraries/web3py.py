"""web3.py as a driver: AsyncWeb3 over a persistent WebSocket, and Web3 over HTTP.

One JSON command per line on stdin; answers ({"id": ..}), events ({"subscription": .., "event": ..}) and {"closed": code} on
stdout.
"""

import asyncio
import json
import sys

from websockets.exceptions import ConnectionClosed

from web3 import AsyncWeb3, HTTPProvider, Web3
from web3.exceptions import Web3Exception
from web3.providers.persistent import WebSocketProvider
from web3.utils.subscriptions import LogsSubscription, NewHeadsSubscription, PendingTxSubscription

ws_url, http_url = sys.argv[1:]


def say(**message):
    sys.stdout.write(Web3.to_json(message) + "\n")


def make_subscription(kind, arg, handler):
    if kind == "newHeads":
        return NewHeadsSubscription(handler=handler)
    if kind == "logs":
        def checksum(address):
            return [checksum(a) for a in address] if isinstance(address, list) else Web3.to_checksum_address(address)
        return LogsSubscription(address=checksum(arg["address"]), topics=arg.get("topics"), handler=handler)
    return PendingTxSubscription(full_transactions=arg, handler=handler)


class Driver:
    def __init__(self, w3):
        self.w3 = w3
        self.http = Web3(HTTPProvider(http_url))
        self.subscriptions = {}
        # As many calls at once as it keeps answers apart for (web3.py's caches hold some hundreds).
        self.few = asyncio.Semaphore(100)

    async def connect(self, _id):
        return await self.w3.is_connected()

    # Only answered on a connection that is there.
    back = connect

    async def subscribe(self, id, kind, arg):
        async def handler(context):
            say(subscription=id, event=context.result)

        # A label of its own: web3.py tells equal subscriptions apart by it.
        subscription = make_subscription(kind, arg, handler)
        subscription._label = str(id)
        self.subscriptions[id] = subscription
        return await self.w3.subscription_manager.subscribe(subscription)

    async def unsubscribe(self, _id, subscription):
        return await self.w3.subscription_manager.unsubscribe(self.subscriptions[subscription])

    async def call(self, _id, method, params):
        return without_id(await self.w3.provider.make_request(method, params))

    async def call_http(self, _id, method, params):
        return without_id(self.http.provider.make_request(method, params))

    async def many(self, _id, calls):
        async def one(method, params):
            async with self.few:
                return await self.call(None, method, params)

        # With several under way its listener takes the error of one for nobody's, and ends by it unless told not to.
        provider = self.w3.provider
        provider.silence_listener_task_exceptions = True
        try:
            return await asyncio.gather(*(one(method, params) for method, params in calls))
        finally:
            provider.silence_listener_task_exceptions = False

    async def batch(self, _id, calls):
        answers = await self.w3.provider.make_batch_request([(method, params) for method, params in calls])
        http = self.http.provider.make_batch_request([(method, params) for method, params in calls])
        return [[without_id(answer) for answer in pair] for pair in zip(answers, http, strict=True)]

    async def send(self, _id, request, key):
        account = self.w3.eth.account.from_key(key)
        transaction = {
            **request,
            "to": Web3.to_checksum_address(request["to"]),
            "nonce": await self.w3.eth.get_transaction_count(account.address),
            "gasPrice": await self.w3.eth.gas_price,
            "chainId": await self.w3.eth.chain_id,
        }
        hash = await self.w3.eth.send_raw_transaction(account.sign_transaction(transaction).raw_transaction)
        receipt = await self.w3.eth.wait_for_transaction_receipt(hash, timeout=15, poll_latency=0.05)
        return {"hash": Web3.to_hex(hash), "logs": [log["logIndex"] for log in receipt["logs"]]}

    async def reads(self, _id, facts):
        eth = self.w3.eth
        account = Web3.to_checksum_address(facts["account"])
        # `batch_requests` is the library's own way to batch; it sends what the other calls send one by one.
        async with self.w3.batch_requests() as batch:
            batch.add(eth.get_block(facts["block"]))
            batch.add(eth.get_balance(account))
            batched = await batch.async_execute()
        return [
            await eth.chain_id,
            await eth.get_block(facts["block"], True),
            await eth.get_transaction_receipt(facts["hash"]),
            await eth.get_balance(account),
            await eth.fee_history(3, facts["block"], [25]),
            batched,
        ]

    async def reads_http(self, _id, facts):
        eth = self.http.eth
        return [eth.chain_id, eth.get_block(facts["blockHash"], True), eth.get_logs({"blockHash": facts["blockHash"]})]


def without_id(answer):
    return {key: value for key, value in answer.items() if key != "id"}


class Lines:
    """The commands on stdin. One that was waited for in vain, for the connection broke, is the next one's first."""

    async def open(self):
        self.reader = asyncio.StreamReader(limit=2**24)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self.reader), sys.stdin)
        self.reading = None

    def next(self):
        self.reading = self.reading or asyncio.create_task(self.reader.readline())
        return self.reading

    def taken(self):
        line, self.reading = self.reading.result(), None
        return line and json.loads(line)


async def serve(w3, lines):
    """Until stdin ends; or the connection, which raises."""
    driver = Driver(w3)
    # Only once there is a subscription: the handler takes errors of ordinary calls for its own now and then.
    handling = None
    try:
        while True:
            await asyncio.wait({lines.next(), *([handling] if handling else [])}, return_when=asyncio.FIRST_COMPLETED)
            if handling and handling.done():
                handling.result()
                raise RuntimeError("web3.py stopped handling subscriptions")
            command = lines.taken()
            if not command:
                return
            try:
                value = await getattr(driver, command["command"])(command["id"], *command["args"])
                say(id=command["id"], value=value)
            except (Web3Exception, ValueError, TypeError, ConnectionClosed) as error:
                say(id=command["id"], error={"name": type(error).__name__, "message": str(error)})
                if isinstance(error, ConnectionClosed):
                    raise
            if handling is None and w3.subscription_manager.subscriptions:
                handling = asyncio.create_task(w3.subscription_manager.handle_subscriptions(run_forever=True))
    finally:
        if handling:
            handling.cancel()


async def main():
    lines = Lines()
    await lines.open()
    async for w3 in AsyncWeb3(WebSocketProvider(ws_url)):
        try:
            await serve(w3, lines)
            await w3.provider.disconnect()
            return
        except ConnectionClosed as closed:
            say(closed=closed.rcvd and closed.rcvd.code)


asyncio.run(main())
