"""Answers what things cost."""

from collections.abc import Callable
from typing import Any

from postage import messaging, microthreads
from stock_shared import Stock, Wanted

PRICES = {'tea': 2.5, 'coffee': 4.0}


class StockProcessor(messaging.MessageProcessor):
    @messaging.RpcHandler('command', 'price')
    def price(self, content: dict[str, Any], reply_func: Callable[..., None]) -> float:
        wanted: Wanted = content['parameters']
        return PRICES[wanted['item']] * wanted['amount']


if __name__ == '__main__':
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(StockProcessor({'name': 'stock'}, [(Stock, [('stock', 'price')])]))
    print('Waiting for messages')
    scheduler.run()
