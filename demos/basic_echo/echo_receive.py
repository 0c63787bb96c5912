"""Print the messages named 'echo' as they come, until a 'quit' message or Ctrl-C."""

import echo_shared
from postage import messaging, microthreads


class EchoReceiveProcessor(messaging.MessageProcessor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        print(content['parameters'])


eqk = [(echo_shared.EchoExchange, [('echo-queue', 'echo-rk')])]

scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(EchoReceiveProcessor({}, eqk, None, None))
try:
    print('Waiting for messages')
    for _ in scheduler.main():
        pass
except KeyboardInterrupt:
    pass
