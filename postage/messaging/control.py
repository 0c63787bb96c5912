"""What every component answers: questions about itself, and commands, on an exchange that is reserved for them.

A component with ``control`` on has a queue of its own, bound to :class:`ControlExchange` by the keys in
:mod:`postage.messaging.addresses`. A thread of its own answers what comes there, so that a handler which never ends
delays nothing. It sleeps until something comes. Requests and replies are those of any RPC; a command may be sent as a
plain message, too.

============  ======================================================================================
``ping``      its fingerprint
``info``      what it is: version, queues and keys, handlers, retry and dead-letter policy, groups
``stats``     how it is: what it has counted, of each handler, and its connections
``stacks``    where it is: the stack of each thread, and what each microthread waits for
``pause``     begin with no more messages, as ``processor.pause()``
``resume``    go on, as ``processor.resume()``
``drain``     begin nothing new, finish what is in hand, and end, as at SIGTERM
``quit``      what its handler of ``('command', 'quit')`` does: the scheduler's loop ends
``restart``   what its handler of ``('command', 'restart')`` does: the program runs again
============  ======================================================================================

All but the first three are obeyed only where ``remote_commands`` says so.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator
from typing import Any

from postage import errors
from postage.amqp.deliveries import Delivery, current
from postage.messaging.addresses import ControlExchange, group_key, keys_of
from postage.messaging.commands import authorise
from postage.messaging.consumer import GenericConsumer
from postage.messaging.dispatching import Dispatcher
from postage.messaging.handlers import Entry, HandlerTable
from postage.messaging.messages import MessageResultError, check_envelope
from postage.messaging.outcomes import AckAndRestart, FilterError
from postage.messaging.questions import info, stacks, stats
from postage.messaging.replies import Reply
from postage.messaging.roles import Host
from postage.microthreads import MicroThread
from postage.printable import shown
from postage.settings import Hup, clock_tolerance

logger = logging.getLogger('postage')

END_SECONDS = 5.0  # for which the end of a processor waits for the thread that answers

Then = Callable[[], object]


class ControlConsumer(GenericConsumer):
    """Consumes what a component is asked."""

    prefetch_count = 16
    durable_queues = False


class Control:
    """Answers for one processor.

    :param host: the processor
    :param table: its handlers
    :param dispatcher: what calls them
    :param consumer: the processor's, whose connection and encoder it shares; without a broker it does nothing
    :param hup: which broker, as the consumer was told
    :param vhost: which virtual host of it
    """

    def __init__(
        self,
        host: Host,
        table: HandlerTable,
        dispatcher: Dispatcher,
        consumer: Any,
        hup: Hup | None,
        vhost: str | None,
    ) -> None:
        self._host = host
        self._table = table
        self._dispatcher = dispatcher
        self._hup, self._vhost = hup, vhost
        self._class: type[ControlConsumer] | None = None
        if isinstance(consumer, GenericConsumer):
            # The same encoder and keys: where messages have to be signed, so has a command.
            names = ('encoder_class', 'hup', 'vhost', 'signing_keys', 'max_age', 'accept_reply_to')
            shared = {name: getattr(type(consumer), name) for name in names}
            self._class = type('ControlConsumer', (ControlConsumer,), shared)
        self._queue = f'postage-control-{uuid.uuid4().hex}'
        self._consumer: ControlConsumer | None = None
        self._thread: threading.Thread | None = None
        self._deliverable = threading.Event()
        self._is_over = False
        self._started_at = time.time()
        self._tolerance = clock_tolerance()
        self._answers: dict[str, Callable[[], tuple[Any, Then | None]]] = {
            'ping': lambda: (host.fingerprint, None),
            'info': lambda: (info(host, table), None),
            'stats': lambda: (stats(host, table, dispatcher.figures, self._started_at), None),
        }
        self._commands: dict[str, Callable[[], tuple[Any, Then | None]]] = {
            'stacks': lambda: (stacks(host), None),
            'pause': lambda: self._do(host.pause),
            'resume': lambda: self._do(host.resume),
            'drain': lambda: (self._state('draining'), self._drain),
            'quit': lambda: self._command('quit', 'quitting'),
            'restart': lambda: self._command('restart', 'restarting'),
        }

    # Life

    def begin(self) -> None:
        """Answer from now on. Blocks. Where the broker refuses that, a warning says so, and all else goes on."""
        if self._class is None or (self._thread is not None and self._thread.is_alive()):
            return
        self._started_at = time.time()
        try:
            self._consumer = self._class([(ControlExchange, self._bindings())], self._hup, self._vhost)
            self._consumer.reply_sender.open()
            self._is_over = False
            self._consumer.delivery_source.begin(self._deliverable.set)
        except errors.PostageError as error:
            logger.warning('%r answers no questions about itself: %s', self._host, error)
            self._close()
            return
        self._thread = threading.Thread(target=self._run, args=(self._consumer,), name='postage-control', daemon=True)
        self._thread.start()

    def _bindings(self) -> list[Any]:
        # It goes with its consumer: the connection may live on, with other processors on it.
        queue = {'name': self._queue, 'flags': {'exclusive': True, 'durable': False, 'auto_delete': True}}
        keys = keys_of(self._host.fingerprint, getattr(self._host, 'groups', ()))
        return [(queue, key) for key in dict.fromkeys(keys)]

    def end(self) -> None:
        """Answer no more. Blocks until what is being answered has its answer, for some seconds at most."""
        self._is_over = True
        self._deliverable.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(END_SECONDS)
            self._thread = None
        self._close()

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.delivery_source.end()
            consumer.close()

    def join(self, group: str) -> None:
        """Be reached by a group's key, too. Blocks."""
        if self._consumer is not None:
            self._consumer.queue_bind(ControlExchange, self._queue, group_key(self._host.fingerprint['name'], group))

    def leave(self, group: str) -> None:
        """Be reached by it no more. Blocks."""
        if self._consumer is not None:
            self._consumer.queue_unbind(ControlExchange, self._queue, group_key(self._host.fingerprint['name'], group))

    # In the thread that answers

    def _run(self, consumer: ControlConsumer) -> None:
        # It waits for the event alone, and not with the connection's readers: one more of those would cost the
        # scheduler's thread its turn to read. Whichever thread reads calls `notify`.
        try:
            while True:
                self._deliverable.wait()
                # Cleared before the look into the inbox, so that what comes after the look counts anew.
                self._deliverable.clear()
                if self._is_over:
                    return
                while (delivery := consumer.delivery_source.next_delivery()) is not None:
                    self._take(consumer, delivery)
        except errors.PostageError as error:
            if not self._is_over:
                logger.warning('%r answers no questions about itself any more: %s', self._host, error)

    def _take(self, consumer: ControlConsumer, delivery: Delivery) -> None:
        then: Then | None = None
        reply: Reply | None = None
        try:
            if consumer.delivery_source.gate is not None and not consumer.delivery_source.gate.admits(delivery):
                return
            consumer.ack(delivery)  # first: what is asked may be the end of this connection
            body = check_envelope(consumer.decode(delivery.body))
            if body['category'] == 'rpc':
                reply = Reply(consumer.rpc_reply, delivery, self._host.fingerprint, None, consumer.reply_addresses)
                unwanted = reply.why_unwanted(self._tolerance)
                if unwanted:
                    logger.warning('%r is not answered: %s', delivery, unwanted)
                    return
            value, then = self._answer(body['name'], delivery, consumer)
            if reply is not None:
                reply(value)
        except errors.SignatureRefused as error:
            consumer.reject(delivery)
            if delivery.salvaged.reply_to:
                header, addresses = delivery.salvaged, consumer.reply_addresses
                unsigned = Reply(consumer.reply_sender.unsigned, delivery, self._host.fingerprint, header, addresses)
                self._tell(unsigned, FilterError(f'the request is refused: {error}'))
        except errors.DecodingError as error:
            logger.warning('%r asks nothing that can be understood: %s', delivery, error)
        except FilterError as error:
            self._tell(reply, error)
        except Exception as error:
            logger.exception('%r could not be answered', delivery)
            self._tell(reply, error)
        if then is not None:
            then()

    def _tell(self, reply: Reply | None, error: Exception) -> None:
        if reply is None or reply.sent:
            return
        try:
            reply.tell(error)
        except Exception as failure:
            logger.warning('the answer to a question could not be sent: %s', failure)

    def _answer(self, name: str, delivery: Delivery, consumer: ControlConsumer) -> tuple[Any, Then | None]:
        answer = self._answers.get(name)
        if answer is None and name in self._commands:
            token = current.set(delivery)
            try:
                authorise(name, self._host.remote_commands, consumer.encoder.decode)
            finally:
                current.reset(token)
            answer = self._commands[name]
        if answer is None:
            known = ', '.join((*self._answers, *self._commands))
            return MessageResultError(f'no component answers {shown(name)}; there are {known}'), None
        return answer()

    # What is done

    def _state(self, state: str) -> dict[str, Any]:
        return {'state': state, 'in_hand': self._dispatcher.figures.in_hand}

    def _do(self, work: Callable[[], None]) -> tuple[Any, Then | None]:
        work()
        return self._state('paused' if self._host.is_paused else 'running'), None

    def _drain(self) -> None:
        if self._host.scheduler is not None:
            self._host.scheduler.stop()

    def _command(self, name: str, state: str) -> tuple[Any, Then | None]:
        """Leave a command to its handler, in the scheduler's thread."""
        entries = self._table.find('message', 'command', name)
        if not entries or self._host.scheduler is None:
            return MessageResultError(f'this component takes no command {name!r}'), None
        return self._state(state), functools.partial(
            self._host.scheduler.add_microthread, _Command(self._host, name, entries)
        )


class _Command(MicroThread):
    """Handles a command in the scheduler's thread, as if it had come to the processor's own queue."""

    def __init__(self, host: Host, name: str, entries: list[Entry]) -> None:
        self._host = host
        self._name = name
        self._entries = entries
        self.label = name

    def main(self) -> Generator[Any, Any, None]:
        body = {'type': 'command', 'name': self._name, 'category': 'message', 'content': {}, 'fingerprint': {}}
        for entry in self._entries:
            try:
                result = entry(body, None)
                if isinstance(result, Generator):
                    yield from result
            except AckAndRestart:
                self._host.restart()
        yield None
