"""What the broker itself says to what a program declares. It is asked in ways in which nothing can come to be.

A passive declaration tells whether something exists, and nothing of its flags. A full declaration tells these, too:
where the thing exists, it has to agree. Here each has one argument that no broker can accept, the *sentinel*. Where the
thing does not exist, or goes away in that moment, the sentinel has the declaration refused. Where it exists, the broker
names the first flag that differs, and if none does the sentinel. So each is refused, and the refusal is the answer.
Permissions are looked at before all that.

In the same way a consumer is never begun whose priority is no number, and what is unbound is a binding that nothing
can have made. https://www.rabbitmq.com/docs/access-control
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

from postage import errors
from postage.amqp.topology import Binding, Queue
from postage.cli.doctor.broker import Broker
from postage.cli.doctor.findings import Finding, warning, wrong
from postage.cli.doctor.program import Program
from postage.cli.doctor.rules import CLASSIC, NAME_MAX, STREAM, arguments, kind

TYPE = 'x-queue-type'
SENTINELS: dict[str, Any] = {'x-single-active-consumer': 'postage-doctor', 'x-max-age': 7, TYPE: 'postage-doctor'}
"""Values that no queue can have. The first is for classic and quorum queues, the second for streams. With these the
type is not always compared; with the last one it is."""
ALTERNATE = 'alternate-exchange'
NO_EXCHANGE = 7  # for the alternate exchange: it has no text for a name

_resource = re.compile(r"(?:(\w+) )?access to (queue|exchange|topic) '(.*?)' in")
_typed = re.compile(r"the value '(.*)' of type '\w+'", re.DOTALL)
_invalid = re.compile(r"invalid arg '([^']+)'")


def ask_all(program: Program, broker: Broker) -> Iterator[Finding]:
    """What the broker would refuse. Blocks.

    :raises errors.BrokerError: it does not answer
    """
    for name, parameters in program.exchanges.items():
        if _fits(name):
            yield from _exchange(broker, parameters)
    for queue in program.queues.values():
        if _fits(queue.name):
            yield from _queue(broker, queue)
            yield from _targets(program, broker, f'queue {queue.name!r}', arguments(queue))
    for parameters in program.exchanges.values():
        alternate = (parameters.get('arguments') or {}).get(ALTERNATE)
        if alternate:
            about = f'exchange {parameters["exchange"]!r}'
            yield from _exists(program, broker, about, 'its alternate exchange', alternate, 'what it cannot route')
    if broker.answers_safely:
        for queue_name in filter(_fits, program.consumed):
            yield from _consuming(broker, queue_name)
        for binding in program.bindings:
            if _fits(binding.queue) and _fits(binding.exchange):
                yield from _binding(broker, binding)
        for name in filter(_fits, program.published):
            yield from _publishing(broker, name)
        if program.answers:
            yield from _answering(broker)


def _fits(name: str) -> bool:
    """Whether a name can be sent at all; for others there is a rule."""
    return len(name.encode()) <= NAME_MAX


# Exchanges


def _exchange(broker: Broker, parameters: dict[str, Any]) -> Iterator[Finding]:
    name = parameters['exchange']
    about = f'exchange {name!r}'
    if parameters.get('passive') or not broker.answers_safely:
        error = broker.refusal('exchange_declare', exchange=name, passive=True)
        if parameters.get('passive') and isinstance(error, errors.NotFound):
            yield wrong('missing', about, 'it is passive, and does not exist')
        elif isinstance(error, errors.AccessRefused):
            yield _forbidden(broker, error, about, 'look at it', 'configure')
        return
    flags = {flag: bool(parameters.get(flag)) for flag in ('durable', 'auto_delete', 'internal')}
    asked: dict[str, Any] = {'type': parameters['exchange_type'], **flags}
    given = {**(parameters.get('arguments') or {}), ALTERNATE: NO_EXCHANGE}
    while True:
        more = {flag: asked[flag] for flag in flags}
        error = broker.refusal('exchange_declare', exchange=name, exchange_type=asked['type'], arguments=given, **more)
        if not isinstance(error, errors.DeclarationMismatch):
            break
        field, found = error.field or '', _value(error.found or '')
        if field not in asked:
            yield from _alternate(about, field, found, parameters)
            return
        yield wrong('flags-differ', about, _differs(field, found, asked[field]))
        if not _adopt(asked, field, found):
            return
    if isinstance(error, errors.AccessRefused):
        yield _forbidden(broker, error, about, 'declare it', 'configure')
    elif error is not None and 'exchange type' in error.reply_text:
        kind_of_it = parameters['exchange_type']
        yield wrong('exchange-type', about, f'this broker has no exchanges of type {kind_of_it!r}; is it of a plugin?')


def _alternate(about: str, field: str, found: str | None, parameters: dict[str, Any]) -> Iterator[Finding]:
    declared = (parameters.get('arguments') or {}).get(field)
    if field == ALTERNATE and found != declared:
        yield wrong('flags-differ', about, _differs(field, found, declared))


# Queues


def _queue(broker: Broker, queue: Queue) -> Iterator[Finding]:
    about = f'queue {queue.name!r}'
    if queue.flags.get('passive') or not broker.answers_safely:
        error = broker.refusal('queue_declare', queue=queue.name, passive=True)
        if isinstance(error, errors.NotFound) and queue.flags.get('passive'):
            yield wrong('missing', about, 'it is passive, and does not exist')
        elif isinstance(error, (errors.AccessRefused, errors.ResourceLocked)):
            yield _not_ours(broker, error, queue)
        return
    flags = {flag: bool(queue.flags.get(flag)) for flag in ('durable', 'auto_delete', 'exclusive')}
    own: dict[str, Any] = {**flags, **arguments(queue)}
    sentinel = 'x-max-age' if kind(queue) == STREAM else 'x-single-active-consumer'
    for key in (sentinel, TYPE):
        error = yield from _compare(broker, queue, own, key)
        if isinstance(error, (errors.AccessRefused, errors.ResourceLocked)):
            yield _not_ours(broker, error, queue)
        if not isinstance(error, errors.DeclarationMismatch) or error.field == TYPE:
            return  # it does not exist, or is none of ours, or all has been said


def _compare(broker: Broker, queue: Queue, own: dict[str, Any], sentinel: str) -> Any:
    """Ask with one sentinel until all that is before it agrees; yields findings, returns the last refusal.

    :param own: what is declared; what was found is put into it, so that it is told once
    """
    about = f'queue {queue.name!r}'
    expected = own.get(sentinel)
    while True:
        flags = {flag: own[flag] for flag in ('durable', 'auto_delete', 'exclusive')}
        given = {name: value for name, value in own.items() if name not in flags} | {sentinel: SENTINELS[sentinel]}
        error = broker.refusal('queue_declare', queue=queue.name, arguments=given, **flags)
        if isinstance(error, errors.DeclarationMismatch):
            field, found = error.field or '', _value(error.found or '')
            wanted = expected if field == sentinel else own.get(field)
            if not _same(field, found, wanted):
                yield _difference(queue, field, found, wanted)
            if field in (sentinel, TYPE) or not _adopt(own, field, found):
                return error
            continue
        invalid = _invalid.search(error.reply_text) if error is not None else None
        name = invalid.group(1) if invalid is not None else ''
        if name == TYPE and sentinel != TYPE:
            yield wrong('queue-type', about, f'this broker has no queues of type {kind(queue)!r}')
        elif name in own and name != sentinel:
            value = own.pop(name)
            has_rule = (name == 'x-queue-version' and value == 1) or 'of queue type' in _reason(error)
            if not has_rule:
                yield wrong('argument', about, f'{name} {value!r} is refused: {_reason(error)}')
            continue
        return error


def _same(field: str, found: str | None, wanted: Any) -> bool:
    if field == TYPE:
        return (found or CLASSIC) == (wanted or CLASSIC)
    return found == (None if wanted is None else _text(wanted))


def _difference(queue: Queue, field: str, found: str | None, wanted: Any) -> Finding:
    about, rule, text = f'queue {queue.name!r}', 'flags-differ', _differs(field, found, wanted)
    if field == TYPE:
        rule, text = 'queue-type', f'it exists as a {found or CLASSIC} queue, and not as a {wanted or CLASSIC} one'
    if field in queue.spelled:
        return wrong(rule, about, text)
    return warning(rule, about, f'{text}; it is used as found')


def _not_ours(broker: Broker, error: errors.OperationRefused, queue: Queue) -> Finding:
    about = f'queue {queue.name!r}'
    if isinstance(error, errors.AccessRefused):
        return _forbidden(broker, error, about, 'declare it', 'configure')
    if queue.flags.get('exclusive'):
        return wrong('locked', about, 'it is exclusive here, and exists already: another connection has it')
    return wrong('locked', about, 'another connection has it for itself: there it is exclusive')


def _targets(program: Program, broker: Broker, about: str, given: dict[str, Any]) -> Iterator[Finding]:
    """Where a queue's dead letters go."""
    exchange, key = given.get('x-dead-letter-exchange'), given.get('x-dead-letter-routing-key')
    if exchange:
        yield from _exists(program, broker, about, 'its dead-letter exchange', exchange, 'what is dead-lettered')
        return
    leads_to_queue = exchange == '' and isinstance(key, str) and key and key not in program.queues
    if leads_to_queue and isinstance(broker.refusal('queue_declare', queue=key, passive=True), errors.NotFound):
        text = f'its dead letters go to queue {key!r}, which does not exist: what is dead-lettered is lost'
        yield wrong('missing', about, text)


def _exists(program: Program, broker: Broker, about: str, what: str, exchange: Any, lost: str) -> Iterator[Finding]:
    if not isinstance(exchange, str) or exchange in program.exchanges:
        return
    if isinstance(broker.refusal('exchange_declare', exchange=exchange, passive=True), errors.NotFound):
        yield wrong('missing', about, f'{what} {exchange!r} does not exist: {lost} is lost')


# Permissions


def _consuming(broker: Broker, queue: str) -> Iterator[Finding]:
    error = broker.refusal(
        'basic_consume', queue=queue, on_message_callback=print, arguments={'x-priority': 'postage-doctor'}
    )
    if isinstance(error, errors.AccessRefused):
        yield _forbidden(broker, error, f'queue {queue!r}', 'consume from it', 'read')


def _binding(broker: Broker, binding: Binding) -> Iterator[Finding]:
    error = broker.refusal(
        'queue_unbind',
        queue=binding.queue,
        exchange=binding.exchange,
        routing_key=binding.routing_key,
        arguments={'x-postage-doctor': secrets.token_hex(8)},
    )
    if isinstance(error, errors.AccessRefused):
        is_queue = "queue '" in error.reply_text
        about = f'binding of queue {binding.queue!r} to exchange {binding.exchange!r}'
        yield _forbidden(broker, error, about, 'bind it', 'write' if is_queue else 'read')


def _publishing(broker: Broker, exchange: str) -> Iterator[Finding]:
    error = broker.refusal(
        'exchange_unbind',
        destination=exchange,
        source='amq.fanout',
        routing_key='',
        arguments={'x-postage-doctor': secrets.token_hex(8)},
    )
    if isinstance(error, errors.AccessRefused) and f"exchange '{exchange}'" in error.reply_text:
        yield _forbidden(broker, error, f'exchange {exchange!r}', 'publish to it', 'write')


def _answering(broker: Broker) -> Iterator[Finding]:
    """Answers go out by the default exchange, and so does one message to a queue that does not exist."""
    error = broker.refusal_of_message('', f'postage-doctor-{secrets.token_hex(8)}')
    if isinstance(error, errors.AccessRefused):
        yield _forbidden(broker, error, 'the default exchange', 'answer RPC requests by it', 'write')


def _forbidden(broker: Broker, error: errors.OperationRefused, about: str, what: str, permission: str) -> Finding:
    resource = _resource.search(error.reply_text)
    if resource is None:
        return wrong('name', about, f'it is refused (403): {_reason(error)}')
    word, kind_of_it, name = resource.groups()
    if what == 'declare it' and kind_of_it == 'exchange' and about.startswith('queue'):
        word = 'write'  # to where its dead letters go
    on = f'{kind_of_it} {name!r}'
    return wrong(
        'permission', about, f'user {broker.user!r} may not {what}: no {word or permission} permission for {on}'
    )


# The broker's words


def _reason(error: errors.OperationRefused | None) -> str:
    text = error.reply_text if error is not None else ''
    text = text.partition(' - ')[2] or text
    return text.partition("': ")[2] or text  # without what it is about


def _value(found: str) -> str | None:
    """A value as the broker describes it; ``None`` where there is none."""
    typed = _typed.search(found)
    if typed is not None:
        return typed.group(1)
    return None if found == 'none' else found.strip("'")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _differs(field: str, found: str | None, wanted: Any) -> str:
    if found is None:
        return f'it exists without {field}, which is {_text(wanted)} here'
    return f'it exists with {field} {found}, which is {"not set" if wanted is None else _text(wanted)} here'


def _adopt(asked: dict[str, Any], field: str, found: str | None) -> bool:
    """Ask with what was found from now on; returns whether that changes anything."""
    before = asked.get(field)
    if found is None:
        asked.pop(field, None)
    elif found in ('true', 'false'):
        asked[field] = found == 'true'
    else:
        is_number = re.fullmatch(r'-?\d+', found) and not isinstance(before, str)
        asked[field] = int(found) if is_number else found
    return bool(asked.get(field) != before)
