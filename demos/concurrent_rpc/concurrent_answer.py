"""Answer questions, each after half a second, until a 'quit' message or Ctrl-C."""

import asyncio
import time

import concurrent_shared
from postage import messaging, microthreads


class PriceProcessor(messaging.MessageProcessor):
    """Knows prices, but has to look each of them up, which takes a while: one handler in each of three colours."""

    concurrency = 1000

    @messaging.RpcHandler('command', 'price')
    def rpc_price(self, content, reply_func):
        yield microthreads.sleep(0.5)
        return len(content['parameters'])

    @messaging.RpcHandler('command', 'price_by_coroutine')
    async def rpc_price_by_coroutine(self, content, reply_func):
        await asyncio.sleep(0.5)
        return len(content['parameters'])

    @messaging.RpcHandler('command', 'price_by_thread')
    @messaging.Threaded
    def rpc_price_by_thread(self, content, reply_func):
        time.sleep(0.5)
        return len(content['parameters'])


class ShopProcessor(messaging.MessageProcessor):
    """Adds up prices. It knows none: it asks for all of them at once, and waits without holding anybody back."""

    concurrency = 10

    @messaging.RpcHandler('command', 'total')
    @messaging.Timeout(10)
    def rpc_total(self, content, reply_func):
        questions = [producer.rpc_future_price(thing) for thing in content['parameters']]
        print(f'Asked for {len(questions)} prices')
        total = 0
        for question in questions:
            answer = yield question
            total += answer.body['content']['value']
        return total


fingerprint = messaging.Fingerprint('concurrent_answer', 'controller').as_dict()
producer = concurrent_shared.PriceProducer(fingerprint)

exchange = concurrent_shared.ConcurrentExchange
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(PriceProcessor(fingerprint, [(exchange, [('price-queue', 'price-rk')])]))
scheduler.add_microthread(ShopProcessor(fingerprint, [(exchange, [('shop-queue', 'shop-rk')])]))
print('Waiting for messages')
scheduler.run()
