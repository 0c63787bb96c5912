"""Ask the greeter twice, by RabbitMQ and by HTTP, and print its answers.

usage: greeter_send.py [URL]
"""

import json
import sys
import urllib.request

import greeter_shared
from postage import messaging, missive


class GreeterProducer(messaging.GenericProducer):
    eks = [(greeter_shared.GreeterExchange, 'greeter-rk')]


fingerprint = messaging.Fingerprint('greeter_send', 'application').as_dict()

producer = GreeterProducer(fingerprint)
reply = producer.rpc_greet('RabbitMQ')
print(reply.body['content']['value'])

request = missive.PostageMessage.of(messaging.RpcCommand('greet', 'HTTP'))
url = sys.argv[1] if len(sys.argv) > 1 else f'http://127.0.0.1:{greeter_shared.PORT}/'
with urllib.request.urlopen(url, request.raw_data) as response:
    print(json.load(response)['content']['value'])
