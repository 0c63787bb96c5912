"""What the programs know: an exchange whose messages reach every station."""

from postage import messaging


class WeatherExchange(messaging.Exchange):
    name = 'weather-exchange'
    exchange_type = 'fanout'
    passive = False
    durable = True
    auto_delete = False
