"""Routing, decisions, hooks, dead letters and the test client: all that needs no transport."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

from missive.conftest import AnyProcessor
from postage import errors, messaging, missive
from support.messaging import LogBook


def raw(data: bytes = b'Hello') -> missive.RawMessage:
    return missive.RawMessage(data)


def every(message: missive.Message) -> bool:
    return True


def acknowledging(processor: AnyProcessor) -> list[missive.Message]:
    """Have a processor acknowledge every message; what it sees is in the list."""
    seen: list[missive.Message] = []

    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        seen.append(message)
        ctx.ack()

    return seen


def raising(processor: AnyProcessor, error: Exception) -> None:
    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        raise error


# Messages


def test_messages_with_the_same_id_are_equal_and_hash_alike() -> None:
    one, other = missive.RawMessage(b'a', b'id'), missive.JSONMessage(b'b', b'id')
    assert one == other
    assert len({one, other}) == 1
    assert one != missive.RawMessage(b'a', b'another id')
    assert one != b'id'


def test_every_message_has_an_id_of_its_own_unless_told() -> None:
    assert raw() != raw()
    assert isinstance(raw().message_id, bytes)


def test_a_json_message_is_decoded_once() -> None:
    message = missive.JSONMessage(b'{"a": [1]}')
    assert message.get_json() == {'a': [1]}
    assert message.get_json() is message.get_json()


def test_a_message_that_is_no_json_says_so() -> None:
    with pytest.raises(errors.DecodingError, match='is not JSON'):
        missive.JSONMessage(b'{').get_json()


def test_a_dict_message_is_read_by_its_decoder() -> None:
    message = missive.DictMessage(b'a=1', lambda data: dict([data.decode().split('=')]))
    assert message.contents() == {'a': '1'}
    assert message.contents() is message.contents()


def test_headers_are_nobody_elses() -> None:
    assert raw().headers == {}
    assert raw().headers is not raw().headers
    assert missive.RawMessage(b'', headers={'a': 1}).headers == {'a': 1}


def test_a_postage_message_gives_the_fields_of_the_envelope() -> None:
    message = missive.PostageMessage.of(messaging.MessageCommand('echo', [1]))
    assert (message.type, message.name, message.category) == ('command', 'echo', 'message')
    assert message.content == {'parameters': [1]}
    assert message.fingerprint == {}


def test_what_is_no_envelope_is_no_postage_message() -> None:
    with pytest.raises(errors.EnvelopeError):
        _ = missive.PostageMessage(b'{}').type


# Routing


def test_the_matching_handler_gets_the_message(processor: AnyProcessor) -> None:
    seen = []
    for letter in b'ab':

        @processor.handle_for(functools.partial(lambda wanted, message: message.raw_data[0] == wanted, letter))
        def handle(message: Any, ctx: Any, letter: int = letter) -> None:
            seen.append((letter, message.raw_data))
            ctx.ack()

    processor.test_client().send(raw(b'b'))
    assert seen == [(ord('b'), b'b')]


def test_handle_for_returns_the_function_it_decorates(processor: AnyProcessor) -> None:
    def handle(message: Any, ctx: Any) -> None: ...

    assert processor.handle_for(every)(handle) is handle


def test_the_same_matcher_twice_is_an_error(processor: AnyProcessor) -> None:
    acknowledging(processor)
    with pytest.raises(RuntimeError, match='has a handler already'):
        acknowledging(processor)


def test_a_matcher_has_to_be_callable(processor: AnyProcessor) -> None:
    with pytest.raises(errors.ConfigurationError, match='a matcher must be callable'):
        processor.handle_for(...)  # type: ignore[arg-type]


@pytest.mark.parametrize(('handlers', 'reason'), [(0, 'no matching handlers'), (2, 'multiple matching handlers')])
def test_exactly_one_handler_has_to_match(processor: AnyProcessor, handlers: int, reason: str) -> None:
    for _ in range(handlers):
        processor.handle_for(lambda message: True)(lambda message, ctx: ctx.ack())
    client, message = processor.test_client(), raw()
    with pytest.raises(RuntimeError, match=reason) as caught:
        client.send(message)
    assert message.message_id.hex() in str(caught.value)
    assert client.acked == client.nacked == []
    processor.set_dlq({})
    client.send(message)
    assert processor.dlq == {message.message_id: (message, reason)}
    assert client.acked == [message]


def test_a_matcher_that_raises_fails_the_handling(processor: AnyProcessor) -> None:
    processor.handle_for(lambda message: message.get_json()['a'])(lambda message, ctx: ctx.ack())
    client, message = processor.test_client(), missive.JSONMessage(b'[')
    with pytest.raises(errors.DecodingError):
        client.send(message)
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    client.send(message)
    assert 'is not JSON' in dlq[message.message_id][1]


# Decisions


def test_what_the_handler_decides_is_what_happens(processor: AnyProcessor) -> None:
    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        getattr(ctx, message.raw_data.decode())()

    client = processor.test_client()
    good, bad, ugly = raw(b'ack'), raw(b'nack'), raw(b'reject')
    for message in (good, bad, ugly):
        client.send(message)
    assert (client.acked, client.nacked, client.rejected) == ([good], [bad, ugly], [ugly])


def test_the_processing_context_decides_as_well(processor: AnyProcessor) -> None:
    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        ctx.processing_ctx.nack(message)

    client = processor.test_client()
    client.send(raw())
    assert len(client.nacked) == 1
    client.ctx.ack(message := raw())
    assert client.acked == [message]


def test_a_handler_that_decides_nothing_fails(processor: AnyProcessor) -> None:
    processor.handle_for(every)(lambda message, ctx: None)
    client, message = processor.test_client(), raw()
    with pytest.raises(missive.UndecidedMessage, match='neither acknowledged nor refused'):
        client.send(message)
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    client.send(message)
    assert client.acked == [message]
    assert 'neither acknowledged nor refused' in dlq[message.message_id][1]


@pytest.mark.parametrize('second', ['ack', 'nack'])
def test_a_second_decision_is_ignored_with_a_warning(processor: AnyProcessor, second: str, log: LogBook) -> None:
    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        ctx.ack()
        getattr(ctx, second)()

    client = processor.test_client()
    client.send(raw())
    assert (len(client.acked), len(client.nacked)) == (1, 0)
    assert log.find('WARNING', 'second decision', f'{second} after ack')


def test_a_decision_after_the_handling_has_failed_changes_nothing(processor: AnyProcessor) -> None:
    late = []
    processor.handle_for(every)(lambda message, ctx: late.append(ctx))
    processor.set_dlq({})
    client = processor.test_client()
    client.send(raw())
    late[0].nack()
    assert (len(client.acked), len(client.nacked)) == (1, 0)


# Failures


def test_a_handler_that_raises_makes_a_dead_letter(processor: AnyProcessor) -> None:
    raising(processor, ValueError('no good'))
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    client, message = processor.test_client(), raw()
    client.send(message)
    assert dlq == {message.message_id: (message, 'no good')}
    assert client.acked == [message]


def test_without_a_dead_letter_queue_the_exception_propagates(processor: AnyProcessor) -> None:
    raising(processor, ValueError('no good'))
    client = processor.test_client()
    with pytest.raises(ValueError, match='no good'):
        client.send(raw())
    assert client.acked == client.nacked == []


def test_an_exception_without_a_text_gives_its_name_as_reason(processor: AnyProcessor) -> None:
    raising(processor, KeyError())
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    processor.test_client().send(raw())
    assert [reason for _, reason in dlq.values()] == ['KeyError']


def test_what_was_acknowledged_before_the_handler_raised_is_stored_and_not_acknowledged_twice(
    processor: AnyProcessor, log: LogBook
) -> None:
    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        ctx.ack()
        raise ValueError('too late')

    processor.set_dlq({})
    client = processor.test_client()
    client.send(raw())
    assert len(client.acked) == len(processor.dlq or ()) == 1
    assert not log.find('second decision')


def test_a_dead_letter_queue_that_fails_leaves_the_message_unacknowledged(processor: AnyProcessor) -> None:
    class Full(dict[bytes, Any]):
        def __setitem__(self, key: bytes, value: Any) -> None:
            raise OSError('no space left')

    raising(processor, ValueError('no good'))
    processor.set_dlq(Full())
    client = processor.test_client()
    with pytest.raises(missive.DeadLetterError, match=r'not acknowledged.*no space left.*no good'):
        client.send(raw())
    assert client.acked == client.nacked == []


# Hooks


def test_hooks_run_around_the_whole_and_around_each_message(processor: AnyProcessor) -> None:
    told: list[str] = []
    acknowledging(processor)
    processor.before_processing(lambda ctx: told.append('startup'))
    processor.after_processing(lambda ctx: told.append('shutdown'))
    processor.before_handling(lambda ctx, handling: told.append('before'))
    processor.after_handling(lambda ctx, handling: told.append(f'after {handling.decision}'))
    with processor.test_client() as client:
        assert told == ['startup']
        client.send(raw())
        client.send(raw())
    assert told == ['startup', 'before', 'after ack', 'before', 'after ack', 'shutdown']


def test_hooks_and_handlers_share_state(processor: AnyProcessor) -> None:
    found = []
    processor.before_processing(lambda ctx: setattr(ctx.state, 'database', 'db'))
    processor.before_handling(lambda ctx, handling: setattr(handling.state, 'began', 1))

    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        found.append((ctx.processing_ctx.state.database, ctx.state.began))
        ctx.ack()

    processor.test_client().send(raw())
    assert found == [('db', 1)]


def test_a_hook_is_returned_as_it_is(processor: AnyProcessor) -> None:
    def hook(ctx: missive.ProcessingContext[Any]) -> None: ...

    assert processor.before_processing(hook) is hook


@pytest.mark.parametrize('which', ['before_handling', 'after_handling'])
def test_a_handling_hook_that_raises_makes_a_dead_letter(processor: AnyProcessor, which: str) -> None:
    acknowledging(processor)

    def hook(ctx: Any, handling: Any) -> None:
        raise ValueError('hooked')

    getattr(processor, which)(hook)
    client, message = processor.test_client(), raw()
    with pytest.raises(ValueError, match='hooked'):
        client.send(message)
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    client.send(message)
    assert dlq[message.message_id][1] == 'hooked'
    assert message in client.acked


@pytest.mark.parametrize('which', ['before_processing', 'after_processing'])
def test_a_processing_hook_that_raises_always_propagates(processor: AnyProcessor, which: str) -> None:
    def hook(ctx: Any) -> None:
        raise ValueError('hooked')

    getattr(processor, which)(hook)
    processor.set_dlq({})
    with pytest.raises(ValueError, match='hooked'):
        processor.test_client().close()


def test_after_hooks_run_all_the_same(processor: AnyProcessor, log: LogBook) -> None:
    told = []
    raising(processor, ValueError('the first'))

    def failing(ctx: Any, handling: Any) -> None:
        raise ValueError('the second')

    processor.after_handling(failing)
    processor.after_handling(lambda ctx, handling: told.append('handling'))
    processor.after_processing(lambda ctx: told.append('processing'))
    with pytest.raises(ValueError, match='the first'), processor.test_client() as client:
        client.send(raw())
    assert told == ['handling', 'processing']
    assert log.find('hook failing raised, too')


# The test client


def test_a_test_client_can_be_used_with_and_without_a_with(processor: AnyProcessor) -> None:
    seen, ended = acknowledging(processor), []
    processor.after_processing(lambda ctx: ended.append(ctx))
    client = processor.test_client()
    client.send(message := raw())
    assert message in client.acked
    client.close()
    client.close()
    with processor.test_client() as client:
        client.send(raw())
    assert (len(seen), len(ended)) == (2, 2)


def test_a_closed_test_client_takes_no_messages(processor: AnyProcessor) -> None:
    client = processor.test_client()
    client.close()
    with pytest.raises(errors.Closed):
        client.send(raw())


def test_replies_are_seen_by_the_test_client(processor: AnyProcessor) -> None:
    @processor.handle_for(every)
    def handle(message: missive.Message, ctx: missive.HandlingContext[Any]) -> None:
        ctx.reply(b'here')
        ctx.ack()

    client = processor.test_client()
    client.send(raw())
    assert client.replies == [b'here']


# One's own adapters


class ListAdapter(missive.Adapter[missive.JSONMessage]):
    """The smallest adapter that there can be."""

    def __init__(self) -> None:
        self.acked: list[missive.JSONMessage] = []

    def run(self, processor: missive.Processor[missive.JSONMessage], lines: list[bytes]) -> None:
        with processor.context(missive.JSONMessage, self) as ctx:
            for line in lines:
                ctx.handle(ctx.new_message(line))

    def ack(self, message: missive.JSONMessage) -> None:
        self.acked.append(message)

    def nack(self, message: missive.JSONMessage) -> None: ...


def test_an_adapter_of_ones_own_needs_ack_and_nack_alone(processor: AnyProcessor, log: LogBook) -> None:
    @processor.handle_for(every)
    def handle(message: missive.JSONMessage, ctx: missive.HandlingContext[missive.JSONMessage]) -> None:
        ctx.reply(b'')
        ctx.ack()

    adapter = ListAdapter()
    adapter.run(processor, [b'1', b'2'])
    assert [message.get_json() for message in adapter.acked] == [1, 2]
    assert log.find('ListAdapter has no way back')


def test_a_message_class_that_cannot_read_what_came_makes_a_dead_letter(processor: AnyProcessor) -> None:
    class Strict(missive.Message):
        def __init__(self, raw_data: bytes) -> None:
            super().__init__(raw_data)
            self.value = json.loads(raw_data)

    seen = acknowledging(processor)
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    adapter: Any = ListAdapter()
    with processor.context(Strict, adapter) as ctx:
        for data in (b'1', b'{'):
            ctx.handle(ctx.new_message(data))
    assert [message.value for message in seen] == [1]  # type: ignore[attr-defined]
    assert [message.raw_data for message, _ in dlq.values()] == [b'{']


def test_a_partial_serves_as_message_class(processor: AnyProcessor) -> None:
    seen = acknowledging(processor)
    adapter: Any = ListAdapter()
    make: Callable[[bytes], Any] = functools.partial(missive.DictMessage, decoder=json.loads)
    with processor.context(make, adapter) as ctx:
        ctx.handle(ctx.new_message(b'{"a": 1}', b'id', {'header': 1}))
    (message,) = seen
    assert isinstance(message, missive.DictMessage)
    assert (message.contents(), message.message_id, message.headers) == ({'a': 1}, b'id', {'header': 1})


@pytest.mark.parametrize('name', missive.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert hasattr(missive, name)
