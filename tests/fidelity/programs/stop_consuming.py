"""``stop_consuming()`` in a handler.

Better: it holds until ``start_consuming()``, and the log says so; the next round of the scheduler began again.
"""

from postage import messaging, microthreads
from stage import Processor, note, processor, producer

seen = []


class Stopping(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        seen.append(content['parameters'])
        self.stop_consuming()


class Clock(microthreads.MicroThread):
    """Ends the loop, where the processor lets it have a turn."""

    rounds = 0

    def step(self):
        self.rounds += 1
        if self.rounds > 100:
            raise microthreads.ExitScheduler


stopping = processor(Stopping)
sending = producer()
sending.message_echo(1)
sending.message_echo(2)
sending.message_quit()
scheduler = microthreads.MicroScheduler()
scheduler.add_microthread(stopping)
scheduler.add_microthread(Clock())
for _ in scheduler.main():
    pass
note(seen)  # [1]
