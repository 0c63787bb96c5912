"""Receive from a queue shared with other receivers and from one of our own, until a 'quit' message or Ctrl-C."""

import echo_shared
from postage import messaging, microthreads


class EchoReceiveProcessor(messaging.MessageProcessor):
    def __init__(self, fingerprint):
        shared_queue = 'echo-queue'
        # No other program may consume from an exclusive queue, and it goes when its receiver goes.
        private_queue = {
            'name': 'echo-queue-{pid}{host}'.format(**fingerprint),
            'flags': {'exclusive': True},
        }
        bindings = [(shared_queue, 'echo-rk'), (private_queue, 'echo-fanout-rk')]
        super().__init__(fingerprint, [(echo_shared.EchoExchange, bindings)], None, None)

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        print(content['parameters'])

    @messaging.MessageHandlerFullBody('command', 'echo')
    def msg_echo_fingerprint(self, body):
        print('Message fingerprint:', body['fingerprint'])


fingerprint = messaging.Fingerprint('echo_receive', 'controller').as_dict()

scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(EchoReceiveProcessor(fingerprint))
try:
    print('Waiting for messages')
    for _ in scheduler.main():
        pass
except KeyboardInterrupt:
    pass
