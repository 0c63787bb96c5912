"""The calling half of a producer: its ``rpc_*`` methods."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from sys import modules
from typing import Any

from postage import errors, settings
from postage.amqp import frames
from postage.amqp.control import declare_queue
from postage.amqp.deliveries import current
from postage.amqp.publishing import Ledger, Outgoing, Receipt, ids
from postage.amqp.threads import this_thread
from postage.amqp.topology import Queue
from postage.amqp.turns import alarm_of_thread, own, read_by_this_thread
from postage.messaging import deadlines, deadlocks, tracing
from postage.messaging.calls import Awaited, Call, RpcFuture
from postage.messaging.gathering import Gathering, Sink, check_expected
from postage.messaging.messages import Message, MessageResult, RpcCommand
from postage.messaging.options import (
    FUTURE_OPTIONS,
    GATHER_OPTIONS,
    QUEUE_OPTIONS,
    RPC_OPTIONS,
    check_number,
    further_properties,
    number,
    pack,
    take_options,
)
from postage.messaging.routed import Routed
from postage.messaging.rpc import bodies_in, client_of, decode_result, failed
from postage.microthreads import running_scheduler

_stamp = Message.fingerprint


class Caller(Routed):
    """Sends RPC requests. The base of :class:`GenericProducer`, which says what the attributes mean."""

    rpc_timeout: float = 30
    gather_timeout: float = 1.0
    max_retry: int = 4
    reply_queue_per_call: bool = False
    rpc_queue_expires: float = 600.0

    def _make_rpc(self, name: str) -> Callable[..., Any]:
        """``rpc_NAME``, or one of its kin; an exact builder wins over these."""
        for prefix, method, options in (
            ('rpc_queue_', self._rpc_queue, QUEUE_OPTIONS),
            ('rpc_future_', self._rpc_future, FUTURE_OPTIONS),
            ('rpc_gather_', self._rpc_gather, GATHER_OPTIONS),
        ):
            if name.startswith(prefix) and len(name) > len(prefix) and not self._has_builder(f'build_{name}'):
                return self._rpc_caller(name, 'rpc_' + name[len(prefix) :], method, options)
        return self._rpc_caller(name, name, self._rpc, RPC_OPTIONS)

    def _has_builder(self, builder: str) -> bool:
        return builder in self.__dict__ or hasattr(type(self), builder)

    def _rpc_caller(
        self, called: str, name: str, method: Callable[[str, Any, dict[str, Any]], Any], known: Sequence[str]
    ) -> Callable[..., Any]:
        """What the user calls, which sends the request ``name``."""
        builder, command = f'build_{name}', name[len('rpc_') :]
        own, cls = self.__dict__, type(self)

        def call(*args: Any, **kwds: Any) -> Any:
            options = take_options(kwds, known, called, self, builder) if kwds else kwds
            if builder in own or hasattr(cls, builder):
                return method(name, self._build_request(builder, args, kwds), options)
            parameters = args[0] if len(args) == 1 and not kwds else pack(args, kwds)
            return method(name, RpcCommand(command, parameters), options)

        return call

    def _build_request(self, builder: str, args: tuple[Any, ...], kwds: dict[str, Any]) -> Any:
        """What a builder makes, unless no RPC handler takes it: its caller would wait for an answer in vain."""
        message = self._build(builder, args, kwds)
        body = message.body
        if isinstance(body, dict) and body.get('category') == 'message':
            raise errors.ConfigurationError(
                f'{type(self).__name__}.{builder}() must return a request, such as an RpcCommand, and not a '
                f"{type(message).__name__}: its category is 'message', and nothing answers messages"
            )
        return message

    def _rpc(self, name: str, message: Message, options: dict[str, Any]) -> MessageResult | str:
        if options and options.get('_queue_only'):
            return self._rpc_queue(name, message, options)
        scheduler = running_scheduler()
        if scheduler is not None:
            route = self._routes_of(options)[0]
            deadlocks.refuse(scheduler, self._settings, name, route, self.channel)
        alarm = alarm_of_thread()
        if alarm is None:
            future = self._rpc_future(name, message, options)
            try:
                return future.result()
            finally:
                future.cancel()  # where it was interrupted
        answer, call = Awaited(alarm), None
        thread = this_thread
        outer = thread.batch
        if outer is None:
            thread.batch = []  # sent as soon as it is complete, by the wait: this thread has nothing else to do
        try:
            call = self._call(name, message, options, answer)
            return answer.wait(self._connection)
        except BaseException:  # such as Ctrl-C: its answer is not waited for any more
            if call is not None:
                client_of(self._connection).abandon(call.correlation_id)
            raise
        finally:
            if outer is None:
                thread.batch = None

    def _rpc_future(self, name: str, message: Message, options: dict[str, Any]) -> RpcFuture:
        future = RpcFuture(self._connection)
        if own.alarm is not None:  # its scheduler will wait for the answer
            read_by_this_thread(self._connection.readership)
        call = self._call(name, message, options, future)
        if call is not None:
            future.exchange, future.routing_key = call.exchange, call.routing_key
            future.correlation_id = call.correlation_id
        return future

    def _rpc_gather(self, name: str, message: Message, options: dict[str, Any]) -> Gathering:
        """Send one request, and return what gathers the replies of all that get it. Blocks as little as a future."""
        gathering = Gathering(self._connection, check_expected(options.pop('_expect', None)))
        read_by_this_thread(self._connection.readership)
        options['_timeout'] = number(options, '_timeout', self.gather_timeout)
        options['_max_retry'] = 0
        call = self._call(name, message, options, Sink(gathering))
        if call is not None:
            gathering.exchange, gathering.routing_key = call.exchange, call.routing_key
            gathering.correlation_id = call.correlation_id
        return gathering

    def _call(
        self, name: str, message: Message, options: dict[str, Any], future: RpcFuture | Awaited | Sink
    ) -> Call | None:
        """Send a request. Returns the call that is under way; ``None`` where its deadline has passed."""
        if self._closed:
            self._check_open()
        if self.eks != self._known_eks:
            self._look_at_eks()
        route = self._routes_of(options)[0] if options or not self._routes else self._routes[0]
        timeout, max_retry = self.rpc_timeout, self.max_retry
        further = None
        if options:
            timeout = number(options, '_timeout', timeout)
            max_retry = int(number(options, '_max_retry', max_retry, whole=True))
            further = further_properties(options)
        until = None
        if deadlines.of_block.get() is not None or current.get() is not None:  # else without a call
            until = deadlines.limit()
            if until is not None:
                timeout = min(timeout, until - time.monotonic())
                if timeout <= 0:
                    future.set_result(
                        failed(errors.TimeoutError(f'RPC {name!r}: its deadline had passed before it was sent'))
                    )
                    return None
        if type(message).fingerprint is _stamp:  # not overridden: without a call for each request
            message.body['fingerprint'].update(self.fingerprint)
        else:
            message.fingerprint(**self.fingerprint)
        if settings.is_debugging:
            self._log_sending(*route, message.body)
        call = Call(
            name,
            route,
            future,
            self.encoder.content_type,
            2 if self.persistent else 1,
            further,
            self.encode(message.body),
            self.encoder.decode,
            timeout,
            max_retry,
            self.reply_queue_per_call,
            until,
            self,
            self._signatures,
        )
        if tracing.NEEDED in modules:
            traced = tracing.sending(self._settings, route, call.correlation_id, further, call.correlation_id)
            call.span, call.further = traced
        try:
            (self._connection.rpc_client or client_of(self._connection)).call(call)
        except BaseException as error:
            if call.span is not None:
                call.span.end(error)
            raise
        return call

    @property
    def late_replies(self) -> int:
        """How many replies came for which no call waited any more, of all producers that share the connection."""
        client = self._connection.rpc_client
        return client.late_replies if client is not None else 0

    def _end_calls(self) -> None:
        """End the calls under way, and tell their responders. Blocks for a moment where there are any."""
        client = self._connection.rpc_client
        if client is not None:
            client.end_calls(errors.Closed(f'this {type(self).__name__} was closed'), self)

    def _rpc_queue(self, name: str, message: Message, options: dict[str, Any]) -> str:
        """Send the request once, and return the queue that its answer will be in.

        :raises errors.Unroutable: no queue took it; there is no queue for an answer then, either
        :raises errors.PublishError: the broker did not take it, for its exchange has gone, say; nor is there one then
        """
        self._check_open()
        exchange, key = self._routes_of(options)[0]
        message.fingerprint(**self.fingerprint)
        if settings.is_debugging:
            self._log_sending(exchange, key, message.body)
        encoded = self.encode(message.body)
        message_id = ids.new()
        queue = Queue(
            f'postage.rpc-{message_id}',
            {'durable': True, 'arguments': {'x-expires': int(self.rpc_queue_expires * 1000)}},
        )
        given: dict[str, Any] = {
            'content_type': self.encoder.content_type or None,
            'delivery_mode': 2 if self.persistent else 1,
            'message_id': message_id,
            'correlation_id': message_id,
            'reply_to': queue.name,
            **(further_properties(options) or {}),
        }
        if self._signatures is None:
            properties = frames.encode_properties(**given)
        else:
            properties = self._signatures.properties(exchange, key, encoded, given)
        self._connection.ask(lambda: declare_queue(self._connection.control, queue))
        publisher = self._connection.publisher(True)
        receipt = Receipt(message_id, 1, True, Ledger(publisher))
        outgoing = Outgoing(exchange, key, True, properties, encoded, receipt, resend=False)
        publisher.publish(outgoing, self.publish_timeout)
        try:
            receipt.wait(self.publish_timeout)
        except errors.PublishTimeout:
            raise  # the broker may be away; the queue expires
        except errors.PublishError:
            self.channel.queue_delete(queue.name)
            raise
        return queue.name

    def consume_rpc(
        self,
        queue: str,
        result_len: int = 1,
        callback: Callable[[Any], object] | None = None,
        timeout: float | None = None,
    ) -> list[MessageResult]:
        """Collect results from a queue that ``rpc_queue_*`` returned. Blocks; leaves no consumer behind.

        :param result_len: how many to wait for
        :param callback: called with each decoded body, in the calling thread
        :param timeout: seconds for all of them; by default, or where it is negative, ``rpc_timeout``
        :return: the results, in the order of their arrival; a malformed one as a ``MessageResultError``
        :raises errors.ConfigurationError: one of these is no such number
        :raises errors.EncodingError: the name of the queue is no text, or too long
        :raises errors.TimeoutError: too few arrived in time; its ``results`` has those that did
        :raises errors.NotFound: there is no such queue
        """
        self._check_open()
        frames.short_string(queue, 'the name of the queue')
        results: list[MessageResult] = []
        check_number(result_len, 'result_len', whole=True)
        if timeout is None or (isinstance(timeout, (int, float)) and timeout < 0):
            timeout = self.rpc_timeout
        seconds = check_number(timeout, 'timeout')
        deadline = time.monotonic() + min(seconds, threading.TIMEOUT_MAX)
        until = deadlines.limit()
        deadline = deadline if until is None else min(deadline, until)
        replies = bodies_in(queue, self._connection, result_len, deadline, self._signatures)
        with contextlib.closing(replies) as bodies:
            for data in bodies:
                if callback is not None:
                    try:
                        body = self.encoder.decode(data)
                    except Exception:
                        pass  # the result says so: it is a MessageResultError
                    else:
                        callback(body)
                results.append(decode_result(data, self.encoder.decode))
        if len(results) < result_len:
            text = f'{len(results)} of {result_len} results arrived in queue {queue!r} in time'
            raise errors.TimeoutError(text, results)
        return results
