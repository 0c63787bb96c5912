"""What the programs beside this file share. It runs on both releases, so it uses only what both have."""

import json
import threading

from postage import messaging, microthreads

FINGERPRINT = messaging.Fingerprint('program', 'test', 4711, 'somewhere', 'me', 'there').as_dict()
"""The same in both runs."""


class StageExchange(messaging.Exchange):
    name = 'stage-exchange'


EQK = [(StageExchange, [('stage-queue', 'stage-rk')])]


producers = []


class Producer(messaging.GenericProducer):
    eks = [(StageExchange, 'stage-rk')]

    def __init__(self, *arguments):
        super().__init__(*arguments)
        producers.append(self)


class Consumer(messaging.GenericConsumer):
    durable_queues = False  # as 1.2.1 has them


class Processor(messaging.MessageProcessor):
    """Handles nothing but quit and restart: each program derives its own from it."""

    consumer_class = Consumer


def note(*observed):
    """Note something that the two runs are compared by."""
    print('note', json.dumps(observed if len(observed) > 1 else observed[0], sort_keys=True, default=repr), flush=True)


def processor(cls, eqk=EQK):
    """A processor of a class, on the queue of the stage."""
    return cls(FINGERPRINT, eqk, None, None)


def producer(cls=Producer):
    """A producer of a class, with the fingerprint of the stage."""
    return cls(FINGERPRINT)


def loop(*processors):
    """Run processors until one of them ends the loop, as every program does."""
    scheduler = microthreads.MicroScheduler()
    for each in processors:
        scheduler.add_microthread(each)
    for _ in scheduler.main():
        pass


def settle():
    """Wait until the broker has all that was sent: several producers are several connections, without an order."""
    for each in producers:
        if hasattr(messaging.GenericProducer, 'flush'):
            each.flush()
        else:
            each.channel.queue_declare(exclusive=True)


def handle(cls, *sends):
    """Make a processor of a class, call each of these with a producer, send quit, and run it until that comes."""
    consuming = processor(cls)
    sending = producer()
    for send in sends:
        send(sending)
        settle()
    sending.message_quit()
    loop(consuming)
    return consuming


class Answering:
    """A processor that answers in a thread of its own for the length of a ``with``."""

    def __init__(self, cls):
        self.thread = threading.Thread(target=loop, args=[processor(cls)])

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *error):
        producer().message_quit()
        self.thread.join()


def raised(function, *arguments, **keywords):
    """The name of the exception that a call raises, pika's where it has one; else what the call returns."""
    try:
        return function(*arguments, **keywords)
    except Exception as error:
        kinds = [kind for kind in type(error).__mro__ if kind.__module__ == 'pika.exceptions']
        return (kinds or [type(error)])[0].__name__
