"""Ask all weather stations, and print the answers as they come: python gather_ask.py [NAME ...]"""

import sys

import gather_shared
from postage import messaging


class WeatherProducer(messaging.GenericProducer):
    eks = [(gather_shared.WeatherExchange, '')]


with WeatherProducer(messaging.Fingerprint('gather_ask', 'application')) as weather:
    gathering = weather.rpc_gather_temperature(_timeout=1, _expect=set(sys.argv[1:]) or None)
    for reply in gathering:
        print(f'{reply.responder["name"]}: {reply.unwrap():g} degrees')
    for name in sorted(gathering.silent):
        print(f'{name} was silent')
