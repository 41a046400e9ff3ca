"""web3.py 7 as a driver: Web3 over LegacyWebSocketProvider. One JSON command per line on stdin, an answer each on stdout."""

import json
import sys

from web3 import LegacyWebSocketProvider, Web3

ws_url = sys.argv[1]


def without_id(answer):
    return {key: value for key, value in answer.items() if key != "id"}


class Driver:
    def __init__(self, w3):
        self.w3 = w3

    def call(self, method, params):
        return without_id(self.w3.provider.make_request(method, params))

    def many(self, calls):
        return [self.call(method, params) for method, params in calls]

    def batch(self, calls):
        return [without_id(answer) for answer in self.w3.provider.make_batch_request([tuple(call) for call in calls])]

    def reads(self, facts):
        eth = self.w3.eth
        account = Web3.to_checksum_address(facts["account"])
        with self.w3.batch_requests() as batch:
            batch.add(eth.get_block(facts["block"]))
            batch.add(eth.get_balance(account))
            batched = batch.execute()
        return [
            self.w3.is_connected(),
            eth.chain_id,
            eth.get_block(facts["block"], True),
            eth.get_transaction_receipt(facts["hash"]),
            eth.get_balance(account),
            eth.fee_history(3, facts["block"], [25]),
            eth.get_logs({"blockHash": facts["blockHash"]}),
            batched,
        ]


driver = Driver(Web3(LegacyWebSocketProvider(ws_url)))
for line in sys.stdin:
    command = json.loads(line)
    try:
        said = {"value": getattr(driver, command["command"])(*command["args"])}
    # Whatever it is, its like must come from the node.
    except Exception as error:
        said = {"error": {"name": type(error).__name__, "message": str(error)}}
    print(Web3.to_json({"id": command["id"], **said}))
