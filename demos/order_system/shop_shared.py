"""What the components of the shop know of each other: exchanges, and producers that say what can be sent to them."""

from postage import messaging


class Prices(messaging.Exchange):
    name = 'shop-prices'


class PriceProducer(messaging.GenericProducer):
    eks = [(Prices, 'price')]
    rpc_timeout = 5

    def build_rpc_price(self, item):
        return messaging.RpcCommand('price', {'item': item})


class Orders(messaging.Exchange):
    name = 'shop-orders'


class OrderProducer(messaging.GenericProducer):
    eks = [(Orders, 'order')]

    def build_message_order(self, item, customer):
        return messaging.MessageCommand('order', {'item': item, 'customer': customer})

    def build_message_register(self, customer):
        return messaging.MessageCommand('register', {'customer': customer})


class News(messaging.Exchange):
    name = 'shop-news'
    exchange_type = 'topic'


class NewsProducer(messaging.GenericProducer):
    eks = [(News, 'order.paid')]

    def build_message_paid(self, order):
        return messaging.MessageStatus('paid', order)


class Announcements(messaging.Exchange):
    name = 'shop-announcements'
    exchange_type = 'fanout'


class AnnouncementProducer(messaging.GenericProducer):
    eks = [(Announcements, '')]

    def build_message_closing(self, why):
        return messaging.MessageStatus('closing', {'why': why})
