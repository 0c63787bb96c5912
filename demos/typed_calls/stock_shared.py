"""What the two programs know of each other: the exchange, what a request says, and the calls with their types."""

from typing import TypedDict

from postage import messaging


class Stock(messaging.Exchange):
    name = 'stock'


class Wanted(TypedDict):
    item: str
    amount: int


class StockProducer(messaging.GenericProducer):
    eks = [(Stock, 'price')]

    def build_rpc_price(self, wanted: Wanted) -> messaging.RpcCommand:
        return messaging.RpcCommand('price', wanted)

    def price(self, item: str, amount: int = 1) -> float:
        """What so many of an item cost.

        :raises messaging.RemoteError: the stock does not have it
        """
        return float(self.rpc_price({'item': item, 'amount': amount}).unwrap())
