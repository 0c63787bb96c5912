"""Asks for twenty prices at once, and for one that there is not."""

import time

from postage import messaging
from shop_shared import PriceProducer

with PriceProducer(messaging.Fingerprint('customer', 'shop')) as producer:
    producer.rpc_price('tea').unwrap()  # where pricing is not running, this says so
    began = time.monotonic()
    futures = [producer.rpc_future_price(item) for item in ['tea', 'coffee'] * 10]
    prices = [future.result().body['content']['value'] for future in futures]
    print(f'{len(prices)} prices, {sum(prices)} in all, in {time.monotonic() - began:.1f} s')

    answer = producer.rpc_price('gold')
    if not answer:
        print('Sorry:', answer.body['content']['message'])
