"""What both programs know: the exchange, and where the greeter listens for HTTP."""

from postage import messaging

PORT = 8000


class GreeterExchange(messaging.Exchange):
    name = 'greeter-exchange'
    exchange_type = 'direct'
    passive = False
    durable = True
    auto_delete = False
