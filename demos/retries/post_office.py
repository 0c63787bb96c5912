"""Deliver letters until a 'quit' message or Ctrl-C; those that cannot be delivered go to the file that is named."""

import sys

import post_shared
from postage import messaging, microthreads
from postage.dead_letters import SQLiteDeadLetters


class PostOffice(messaging.MessageProcessor):
    """Knows who lives where. Its postman is often out, which passes; an unknown name does not."""

    dead_letters = SQLiteDeadLetters(sys.argv[1])
    streets = {'Ann': 'Elm Street'}

    @messaging.Retry(ConnectionError, delays=(0.2, 0.4))
    @messaging.MessageHandler('command', 'letter')
    def msg_letter(self, content):
        name = content['parameters']
        if name not in self.streets:
            print(f'Nobody knows where {name} lives')
            raise messaging.RejectMessage(f'no street for {name}')
        failures = messaging.current_delivery().headers.get('x-postage-attempts', 0)
        if failures < 2:
            print(f'The postman is out, {name} has to wait')
            raise ConnectionError('the postman is out')
        print(f'A letter for {name} was brought to {self.streets[name]} after {failures} failures')

    @messaging.MessageHandler('command', 'move_in')
    def msg_move_in(self, content):
        self.streets.update(content['parameters'])
        print(f'Known now: {", ".join(self.streets)}')


eqk = [(post_shared.PostExchange, [('post-queue', 'post-rk')])]

scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(PostOffice({}, eqk, None, None))
print('Waiting for messages')
scheduler.run()
