"""What the programs know: the exchange, and what can be sent to the post office."""

from postage import messaging


class PostExchange(messaging.Exchange):
    name = 'post-exchange'
    exchange_type = 'direct'
    passive = False
    durable = True
    auto_delete = False


class PostProducer(messaging.GenericProducer):
    eks = [(PostExchange, 'post-rk')]
