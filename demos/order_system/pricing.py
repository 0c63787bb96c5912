"""Pricing: says what a thing costs, which its supplier has to be asked for."""

import asyncio

from postage import messaging, microthreads
from shop_shared import Prices

SUPPLIER = {'tea': 4, 'coffee': 7, 'book': 12}


class Pricing(messaging.MessageProcessor):
    concurrency = 20
    timeout = 3

    def __init__(self):
        super().__init__(messaging.Fingerprint('pricing', 'shop'), [(Prices, [('shop-prices', 'price')])])

    @messaging.RpcHandler('command', 'price')
    async def price(self, content, reply_func):
        item = content['parameters']['item']
        await asyncio.sleep(0.2)  # the supplier takes its time
        if item not in SUPPLIER:
            return messaging.MessageResultError(f'nobody sells {item}')
        return SUPPLIER[item]


if __name__ == '__main__':
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(Pricing())
    print('Waiting for messages')
    scheduler.run(grace=5)
