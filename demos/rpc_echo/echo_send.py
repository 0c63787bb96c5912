"""Ask the receiver, wait for its reply and print it."""

import echo_shared
from postage import messaging


class EchoProducer(messaging.GenericProducer):
    eks = [(echo_shared.EchoExchange, 'echo-rk')]


fingerprint = messaging.Fingerprint('echo_send', 'application').as_dict()
producer = EchoProducer(fingerprint)

reply = producer.rpc_echo('RPC test message')
if reply:
    print(reply.body['content']['value'])
else:
    print('RPC failed:', reply.text)
