"""Send one message named 'echo', and end."""

import echo_shared
from postage import messaging


class EchoProducer(messaging.GenericProducer):
    eks = [(echo_shared.EchoExchange, 'echo-rk')]


producer = EchoProducer()
producer.message_echo('A test message')
