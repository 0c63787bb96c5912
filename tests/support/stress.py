"""Random operations from many threads on one pair of connections, and a model that knows what must come of them.

Each thread takes its operations from a random generator of its own, made from the seed and its number, so a seed gives
each thread the same operations again; how they meet is never quite the same. Every operation checks its own answer
where the model knows it, and has a limit in seconds; :meth:`Stress.judge` checks what must hold once all is quiet.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from postage import errors, messaging
from support.messaging import Bench, EchoExchange, EchoProducer, Processor, eventually
from support.proxy import Proxy
from support.refusals import REFUSALS, prepare, refused_to_consumer, refused_to_producer

THREADS = 8
STABLE = [f'stable-{number}' for number in range(4)]
"""Queues that nobody deletes, and that a processor and passing consumers share."""

DOOMED = 'doomed'
"""A queue that is deleted under its consumer, and declared again by it."""

LIMIT = 25.0
"""Seconds that any one operation may take, on a busy machine and with connections that are lost meanwhile."""

CUT_PAUSE = 0.7
"""Seconds between two losses of the connections, at least."""

RECEIPTS_KEPT = 200
"""Receipts that a thread leaves unsettled before it waits for the oldest."""

BODY_SIZES = (0, 10, 1_000, 200_000)


class StressProducer(EchoProducer):
    """Its calls outlast a few lost connections."""

    eks = [(EchoExchange, 'call')]
    rpc_timeout = 2.0
    max_retry = 9
    publish_timeout = LIMIT


class Unconfirmed(StressProducer):
    confirms = False


class Resident(Processor):
    """Consumes from all the stable queues and from the doomed one, notes what it gets, and answers calls."""

    def __init__(self, arrived: Callable[[Any], None]) -> None:
        self.arrived = arrived
        super().__init__([(EchoExchange, [('calls', 'call'), *((queue, queue) for queue in (*STABLE, DOOMED))])])

    @messaging.MessageHandler('command', 'note')
    def msg_note(self, content: dict[str, Any]) -> None:
        self.arrived(content['parameters'][0])

    @messaging.RpcHandler('command', 'double')
    def rpc_double(self, content: dict[str, Any], reply_func: Callable[[Any], None]) -> None:
        reply_func(content['parameters'] * 2)


class Stress:
    """The model, and what all the threads share.

    :param bench: sets up what they use, behind the proxy
    :param proxy: loses the connections
    :param seed: of everything that is random
    """

    def __init__(self, bench: Bench, proxy: Proxy, seed: int) -> None:
        self.bench = bench
        self.proxy = proxy
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._arrived: set[Any] = set()
        self._disturbances = self._disturbing = 0
        self._next_cut = 0.0
        self._stop = threading.Event()
        prepare(bench)
        self.resident = Resident(self.note)
        bench.run(self.resident)
        self.producer = bench.producer(StressProducer)
        self.unconfirmed = bench.producer(Unconfirmed)
        self.others = bench.consumer([])
        self.channels_at_rest = 0
        self.workers = [Worker(self, number) for number in range(THREADS)]

    # What the workers tell the model

    def note(self, number: Any) -> None:
        """A message has arrived, and is acknowledged."""
        with self._lock:
            self._arrived.add(number)

    def has_arrived(self, number: Any) -> bool:
        """Whether a message has arrived, once at least."""
        return number in self._arrived

    @contextmanager
    def disturbing(self) -> Iterator[None]:
        """What happens in the ``with`` may have messages of other threads sent twice, and answers lost."""
        with self._lock:
            self._disturbances += 1
            self._disturbing += 1
        try:
            yield
        finally:
            with self._lock:
                self._disturbing -= 1

    def mark(self) -> int:
        """A moment, for :meth:`is_certain_since`; negative where something is being disturbed."""
        with self._lock:
            return -1 if self._disturbing else self._disturbances

    def is_certain_since(self, mark: int) -> bool:
        """Whether nothing was disturbed since then, so that the model knows every answer to the letter."""
        return mark == self._disturbances

    def cut(self, gently: bool) -> None:
        """Lose both connections, unless that was done just now."""
        with self._lock:
            if time.monotonic() < self._next_cut:
                return
            self._next_cut = time.monotonic() + CUT_PAUSE
        with self.disturbing():
            accepted = self.proxy.accepted
            if self.proxy.cut(reset=not gently):
                eventually(lambda: self.proxy.accepted > accepted)

    @property
    def is_over(self) -> bool:
        return self._stop.is_set() or bool(self.failures)

    # A run

    def run(self, seconds: float) -> None:
        """Have all threads at it for so long, and wait for their ends.

        :raises AssertionError: where an operation answers wrongly or takes longer than :data:`LIMIT`
        """
        end = time.monotonic() + seconds
        for worker in self.workers:
            worker.thread.start()
        pause = threading.Event()
        while time.monotonic() < end and not self.failures:
            pause.wait(0.1)
            self.failures += [hang for worker in self.workers if (hang := worker.hang())]
            self.failures += self.bench.log.find('Traceback')
        self._stop.set()
        deadline = time.monotonic() + LIMIT
        for worker in self.workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))
            if worker.thread.is_alive():
                self.failures.append(worker.hang(0.0) or f'thread {worker.number} does not end')
        assert not self.failures, '\n'.join([f'SEED={self.seed}', *self.failures])

    def judge(self) -> None:
        """Check what must hold when all threads have ended.

        :raises AssertionError: where it does not
        """
        self.producer.flush(LIMIT)
        self.unconfirmed.flush(LIMIT)
        receipts = [(number, receipt) for worker in self.workers for number, receipt in worker.published]
        unsettled = [number for number, receipt in receipts if not receipt.settled]
        assert not unsettled, f'never settled: {unsettled[:10]}'
        failed = [(number, receipt.error) for number, receipt in receipts if not receipt.confirmed]
        assert not failed, f'not confirmed: {failed[:10]}'
        self._await_none(lambda: [number for number, _ in receipts if not self.has_arrived(number)], 'never arrived')
        for queue in (*STABLE, DOOMED):
            number = f'last to {queue}'
            self.producer.message_note([number, ''], _key=queue).wait(LIMIT)
            self._await_none(lambda number=number: [] if self.has_arrived(number) else [number], 'deaf to')
        assert self.producer.rpc_double(21).body['content']['value'] == 42
        queues = {*STABLE, DOOMED, 'calls', 'other-flags'}
        self._await_none(lambda: sorted(set(self._queues()) - queues), 'left behind')
        messages = self.bench.broker.messages
        self._await_none(lambda: [pair for pair in messages().items() if pair[0] in queues and pair[1]], 'still queued')
        # The control channel of either connection, two that publish, one that consumes, one for replies; one that
        # sends cancels and one that receives them; the bench's.
        self._await_none(lambda: [count for count in [self.bench.broker.channels()] if count > 9], 'channels')

    def _queues(self) -> list[str]:
        """The queues, but those of answers that nobody has fetched, which expire some time."""
        return [name for name in self.bench.broker.queues() if not name.startswith('postage.rpc')]

    @staticmethod
    def _await_none(left: Callable[[], list[Any]], what: str) -> None:
        deadline = time.monotonic() + LIMIT
        pause = threading.Event()
        while found := left():
            assert time.monotonic() < deadline, f'{what}: {found[:10]} ({len(found)})'
            pause.wait(0.02)

    def __str__(self) -> str:
        return ', '.join(f'{count} {name}' for name, count in sorted(self.counts.items()))


class Worker:
    """One thread's operations.

    :ivar published: number and receipt of each message that must arrive in the end
    """

    def __init__(self, stress: Stress, number: int) -> None:
        self.stress = stress
        self.number = number
        self.published: list[tuple[Any, Any]] = []
        self.thread = threading.Thread(target=self._run, name=f'stress-{number}', daemon=True)
        self._waiting: deque[Any] = deque()
        self._random = random.Random(f'{stress.seed} {number}')
        self._history: deque[str] = deque(maxlen=12)
        self._began = 0.0
        self._serial = 0
        self._operations, self._weights = zip(*self._choices().items(), strict=True)

    def _choices(self) -> dict[Callable[[], None], int]:
        """The operations, and how often each is chosen."""
        return {
            self.publish: 40,
            self.publish_unconfirmed: 10,
            self.wait: 8,
            self.flush: 2,
            self.be_refused: 12,
            self.be_refused_as_consumer: 6,
            self.live_with_a_queue: 6,
            self.have_an_exchange_deleted: 2,
            self.call: 8,
            self.call_later: 4,
            self.collect: 2,
            self.consume: 2,
            self.share: 2,
            self.doom: 1,
            self.cut: 1,
        }

    def _run(self) -> None:
        while not self.stress.is_over:
            (operation,) = self._random.choices(self._operations, self._weights)
            self._began = time.monotonic()
            self._history.append(operation.__name__)
            try:
                operation()
            except BaseException:
                self.stress.failures.append(f'{self}\n{traceback.format_exc()}')
                return
            seconds = time.monotonic() - self._began
            if seconds > LIMIT:
                self.stress.failures.append(f'{self}: {operation.__name__} took {seconds:.1f} s')
            self.stress.counts[operation.__name__] += 1

    def hang(self, limit: float = LIMIT) -> str:
        """Where the thread stands, if its operation takes longer than it may."""
        if not self.thread.is_alive() or not self._began or time.monotonic() - self._began < limit:
            return ''
        stack = sys._current_frames().get(self.thread.ident or 0)
        return f'{self} hangs\n{"".join(traceback.format_stack(stack)) if stack else ""}'

    def __str__(self) -> str:
        return f'thread {self.number} after {", ".join(self._history)}'

    def _name(self, what: str) -> str:
        """A name that nothing else has."""
        self._serial += 1
        return f'{what}-{self.number}-{self._serial}'

    # Messages

    def _publish(self, producer: Any, key: str) -> tuple[Any, Any]:
        number = self._name('message')
        return number, producer.message_note([number, 'x' * self._random.choice(BODY_SIZES)], _key=key)

    def publish(self) -> None:
        """To a stable queue; it must arrive."""
        number, receipt = self._publish(self.stress.producer, self._random.choice(STABLE))
        self.published.append((number, receipt))
        self._waiting.append(receipt)
        if len(self._waiting) > RECEIPTS_KEPT:
            self.wait()

    def publish_unconfirmed(self) -> None:
        """It may be lost with a connection, and is settled all the same."""
        _, receipt = self._publish(self.stress.unconfirmed, self._random.choice(STABLE))
        if self._random.random() < 0.1:
            receipt.wait(LIMIT)

    def wait(self) -> None:
        """For a message's confirm."""
        if self._waiting:
            receipt = self._waiting.popleft()
            receipt.wait(LIMIT)
            assert receipt.confirmed

    def flush(self) -> None:
        """Wait for the confirms of all that was published so far."""
        before = [receipt for _, receipt in self.published]
        self.stress.producer.flush(LIMIT)
        assert all(receipt.confirmed for receipt in before)

    def have_an_exchange_deleted(self) -> None:
        """And publish to it: it is declared again, and the message confirmed."""
        exchange = type('Own', (messaging.Exchange,), {'name': self._name('exchange')})
        producer = self.stress.producer
        with type('Publisher', (StressProducer,), {'eks': [(exchange, 'key')]})() as own:
            own.message_note(['', '']).wait(LIMIT)
            with self.stress.disturbing():
                producer.channel.exchange_delete(exchange.name)
                own.message_note(['', '']).wait(LIMIT)
        producer.channel.exchange_delete(exchange.name)

    # Operations on channels

    def be_refused(self) -> None:
        """On the connection that publishes, with the very error."""
        self._expect_refusal(refused_to_producer, self.stress.producer)

    def be_refused_as_consumer(self) -> None:
        """On the connection that consumes, with the very error."""
        self._expect_refusal(refused_to_consumer, self.stress.others)

    def _expect_refusal(self, refused_to: Callable[[Any, str], Callable[[], object]], user: Any) -> None:
        kind = self._random.choice(list(REFUSALS))
        answer: Any = None
        try:
            answer = refused_to(user, kind)()
        except errors.BrokerError as error:
            answer = error
        assert type(answer) is REFUSALS[kind], f'{answer!r} for {kind}'

    def live_with_a_queue(self) -> None:
        """Declare a queue, fill it, look into it, empty it and delete it; nothing else knows of it."""
        channel, producer = self.stress.producer.channel, self.stress.producer
        name = self._name('own')
        mark = self.stress.mark()
        assert channel.queue_declare(name, durable=True).method.queue == name
        channel.queue_bind(name, EchoExchange.name, name)
        most = self._random.randrange(1, 5)
        for number in range(most):
            producer.message_note([number, ''], _key=name).wait(LIMIT)
        count = channel.queue_declare(name, passive=True).method.message_count
        assert count == most or not self.stress.is_certain_since(mark), f'{count} of {most} messages'
        assert count >= most
        method, _, body = channel.basic_get(name, auto_ack=True)
        if self.stress.is_certain_since(mark):
            assert method is not None
            assert producer.encoder.decode(body)['content']['parameters'][0] == 0
        rest = getattr(channel, self._random.choice(['queue_purge', 'queue_delete']))(name).method.message_count
        assert rest == most - 1 or not self.stress.is_certain_since(mark), f'{rest} are left of {most}'
        channel.queue_delete(name)
        try:
            channel.queue_declare(name, passive=True)
        except errors.NotFound:
            return
        raise AssertionError(f'{name} is still there')

    # Calls

    def call(self) -> None:
        """And get one's own answer."""
        number = self._random.randrange(1_000_000)
        answer = self.stress.producer.rpc_double(number).body
        assert answer['content']['value'] == 2 * number, answer

    def call_later(self) -> None:
        """Several at once."""
        numbers = [self._random.randrange(1_000_000) for _ in range(10)]
        futures = [self.stress.producer.rpc_future_double(number) for number in numbers]
        for number, future in zip(numbers, futures, strict=True):
            answer = future.result(LIMIT).body
            assert answer['content']['value'] == 2 * number, answer

    def collect(self) -> None:
        """An answer from a queue; one that is lost with a connection runs out of time."""
        producer, number, mark = self.stress.producer, self._random.randrange(1_000_000), self.stress.mark()
        try:
            queue = producer.rpc_queue_double(number)
            (answer,) = producer.consume_rpc(queue, timeout=5.0)
        except (errors.PublishError, errors.TimeoutError, errors.NotFound):
            assert not self.stress.is_certain_since(mark)  # a request is never sent again by itself
        else:
            assert answer.body['content']['value'] == 2 * number, answer
            producer.channel.queue_delete(queue)

    # Consumers

    def consume(self) -> None:
        """From a queue of one's own, which is deleted under the consumer now and then: it hears of every message."""
        queue = self._name('consumed')
        with _Passing([(EchoExchange, [({'name': queue, 'flags': {'durable': True}}, queue)])]) as passing:
            number, receipt = self._publish(self.stress.producer, queue)
            passing.await_number(number)
            receipt.wait(LIMIT)
            how = self._random.random()
            if how < 0.4:
                self.stress.producer.channel.queue_delete(queue)
            elif how < 0.7:
                try:
                    passing.consumer.channel.queue_declare('missing', passive=True)
                except errors.NotFound:
                    pass
            # What reaches the old queue goes with it: try until the new one is there.
            deadline = time.monotonic() + LIMIT
            while True:
                number, _ = self._publish(self.stress.producer, queue)
                if passing.has(number, 1.0):
                    break
                assert time.monotonic() < deadline, f'the consumer of {queue} is deaf'
        self.stress.producer.channel.queue_delete(queue)

    def share(self) -> None:
        """Consume from a stable queue together with the processor, for a moment."""
        queue = self._random.choice(STABLE)
        with _Passing([(EchoExchange, [(queue, queue)])], self.stress.note) as passing:
            for _ in range(5):
                self.publish()
            passing.has(None, self._random.random() * 0.1)

    def doom(self) -> None:
        """Delete a queue under the processor."""
        self.stress.producer.channel.queue_delete(DOOMED)

    def cut(self) -> None:
        """Lose both connections."""
        self.stress.cut(gently=self._random.random() < 0.5)


class _Passing:
    """A consumer in a thread of its own, for the length of a ``with``.

    :param noted: called with the number of each message before that is acknowledged
    """

    def __init__(self, eqk: Any, noted: Callable[[Any], None] = lambda number: None) -> None:
        self.consumer = messaging.GenericConsumer(eqk)
        self._noted = noted
        self._numbers: set[Any] = set()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name='stress-consumer', daemon=True)

    def _run(self) -> None:
        try:
            self.consumer.start_consuming(self._on_message)
        except BaseException as error:
            self._error = error

    def _on_message(self, _channel: Any, method: Any, _header: Any, body: bytes) -> None:
        number = self.consumer.decode(body)['content']['parameters'][0]
        self._noted(number)
        with self._changed:
            self._numbers.add(number)
            self._changed.notify_all()
        self.consumer.ack(method)

    def has(self, number: Any, seconds: float) -> bool:
        """Wait so long for a message, and say whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: number in self._numbers or self._error is not None, seconds)

    def await_number(self, number: Any) -> None:
        """Wait for a message."""
        assert self.has(number, LIMIT), f'{number} did not come'
        assert self._error is None, self._error

    def __enter__(self) -> _Passing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A stop that comes before the start is none: what has not begun cannot be stopped.
        deadline = time.monotonic() + LIMIT
        while self._thread.is_alive():
            self.consumer.stop_consuming()
            self._thread.join(0.05)
            assert time.monotonic() < deadline, 'a consumer does not stop'
        self.consumer.close()
        assert self._error is None, self._error
