"""What the programs know: the exchange, and what can be asked."""

from postage import messaging


class ConcurrentExchange(messaging.Exchange):
    name = 'concurrent-exchange'
    exchange_type = 'direct'
    passive = False
    durable = True
    auto_delete = False


class PriceProducer(messaging.GenericProducer):
    """Asks for the price of one thing."""

    eks = [(ConcurrentExchange, 'price-rk')]


class ShopProducer(messaging.GenericProducer):
    """Asks for the sum of many."""

    eks = [(ConcurrentExchange, 'shop-rk')]
