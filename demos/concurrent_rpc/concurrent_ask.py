"""Ask many questions at the same time, and see how long all of the answers take."""

import time

import concurrent_shared
from postage import messaging

fingerprint = messaging.Fingerprint('concurrent_ask', 'application').as_dict()
prices = concurrent_shared.PriceProducer(fingerprint)
shop = concurrent_shared.ShopProducer(fingerprint)


def value(answer):
    return answer.body['content']['value'] if answer else answer.body['content']['message']


begun = time.monotonic()
questions = [prices.rpc_future_price('x' * number) for number in range(500)]
total = sum(value(question.result()) for question in questions)
print(f'500 answers at once: {total}, in {time.monotonic() - begun:.1f} s')

begun = time.monotonic()
colours = [prices.rpc_future_price_by_coroutine('apple'), prices.rpc_future_price_by_thread('pear')]
answers = [value(question.result()) for question in colours]
print(f'A coroutine and a thread answered {answers}, in {time.monotonic() - begun:.1f} s')

begun = time.monotonic()
print(f'A list of 100 things costs {value(shop.rpc_total(100 * ["plum"]))}, in {time.monotonic() - begun:.1f} s')
