"""Send one message to a single receiver and one to all of them, saying who sends."""

import echo_shared
from postage import messaging


class EchoProducer(messaging.GenericProducer):
    eks = [(echo_shared.EchoExchange, 'echo-rk')]


fingerprint = messaging.Fingerprint('echo_send', 'application').as_dict()
producer = EchoProducer(fingerprint)
producer.message_echo('A single test message')
producer.message_echo('A fanout test message', _key='echo-fanout-rk')
