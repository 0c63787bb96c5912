"""A weather station, until a 'quit' message or Ctrl-C: python gather_answer.py NAME DEGREES [SECONDS]"""

import sys

import gather_shared
from postage import messaging, microthreads

name, degrees, seconds = [*sys.argv[1:], '0'][:3]


class Station(messaging.MessageProcessor):
    @messaging.RpcHandler('command', 'temperature')
    def rpc_temperature(self, content, reply_func):
        print('Reading the thermometer')
        try:
            yield microthreads.sleep(float(seconds))
            return float(degrees)
        except GeneratorExit:
            print('Nobody waits for it any more')
            raise


# A queue of its own, which goes with it: every station gets every question.
queue = {'name': f'weather-{name}', 'flags': {'durable': False, 'exclusive': True}}
station = Station(messaging.Fingerprint(name, 'station'), [(gather_shared.WeatherExchange, [(queue, '')])])
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(station)
print('Waiting for messages')
scheduler.run(grace=1)
