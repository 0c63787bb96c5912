"""Asks for two prices, one of which there is not."""

from postage import messaging
from stock_shared import StockProducer

with StockProducer({'name': 'customer'}) as producer:
    print(producer.price('tea', amount=4))
    try:
        producer.price('gold')
    except messaging.RemoteError as error:
        print('The stock says:', error)
