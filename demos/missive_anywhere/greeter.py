"""Answer the calls named 'greet', over RabbitMQ and over HTTP at once, until Ctrl-C.

usage: greeter.py [port]
"""

import logging
import sys
import threading

import greeter_shared
from postage import messaging, missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from postage.missive.adapters.wsgi import WSGIAdapter


class Greeter(messaging.MessageProcessor):
    @messaging.RpcHandler('command', 'greet')
    def msg_greet(self, content, reply_func):
        name = content['parameters']
        print(f'Greeting {name}', flush=True)
        reply_func(messaging.MessageResult(f'Hello {name}'))


# The adapters say where they listen.
logging.basicConfig(level=logging.INFO, format='%(message)s')

fingerprint = messaging.Fingerprint('greeter', 'controller').as_dict()
greeter = missive.Component(Greeter, fingerprint)

eqk = [(greeter_shared.GreeterExchange, [('greeter-queue', 'greeter-rk')])]
rabbitmq = RabbitMQAdapter(missive.PostageMessage, greeter, eqk=eqk)
http = WSGIAdapter(missive.PostageMessage, greeter)

port = int(sys.argv[1]) if len(sys.argv) > 1 else greeter_shared.PORT
http_thread = threading.Thread(target=http.run, kwargs={'port': port})
http_thread.start()
try:
    rabbitmq.run()
finally:
    http.stop()
    http_thread.join()
