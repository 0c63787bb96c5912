"""Answer the calls named 'echo', until a 'quit' message or Ctrl-C."""

import echo_shared
from postage import messaging, microthreads


class EchoReceiveProcessor(messaging.MessageProcessor):
    def __init__(self, fingerprint):
        eqk = [(echo_shared.EchoExchange, [('echo-queue', 'echo-rk')])]
        super().__init__(fingerprint, eqk, None, None)

    @messaging.RpcHandler('command', 'echo')
    def msg_echo(self, content, reply_func):
        print(content['parameters'])
        reply_func(messaging.MessageResult('RPC message received'))


fingerprint = messaging.Fingerprint('echo_receive', 'controller').as_dict()

scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(EchoReceiveProcessor(fingerprint))
try:
    print('Waiting for messages')
    for _ in scheduler.main():
        pass
except KeyboardInterrupt:
    pass
