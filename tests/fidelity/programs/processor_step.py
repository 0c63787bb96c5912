"""``step()`` of a processor is overridden and calls ``super().step()``; all messages are handled."""

from postage import messaging
from stage import Consumer, Processor, handle, note

seen = []


class Greedy(Consumer):
    prefetch_count = 1000  # all of them may arrive before the first is handled


class Stepping(Processor):
    consumer_class = Greedy
    steps = 0

    def step(self):
        self.steps += 1
        super().step()

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        seen.append(content['parameters'])


def send(producer):
    for number in range(100):
        producer.message_echo(number)


stepping = handle(Stepping, send)
note(seen == list(range(100)), stepping.steps > 0)
