"""Handlers get the messages they name, filtered, and what they raise decides what becomes of a message."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading

import pytest

from postage import messaging
from postage.microthreads import MicroScheduler
from support.messaging import (
    EQK,
    GUARDED_EQK,
    HOSTILE,
    TIMEOUT,
    Echo,
    EchoExchange,
    EchoProducer,
    Processor,
    command,
    eventually,
    result,
)


class StatusProducer(EchoProducer):
    def build_message_status(self, status):
        return messaging.MessageStatus(status)


def run(bench, processor_class, eqk=EQK):
    """A running processor."""
    processor = processor_class(eqk)
    bench.run(processor)
    return processor


def guarded(bench, processor_class):
    """A running processor whose rejected messages end up in the queue ``dead``."""
    bench.dead()
    processor = processor_class(GUARDED_EQK)
    return processor, bench.run(processor)


def content_of(reply):
    return reply.body['content']


# What a handler gets


def test_a_message_handler_gets_the_content(bench):
    class Handling(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(content)

    processor = run(bench, Handling)
    bench.producer().message_echo('text')
    assert processor.seen.next() == {'parameters': 'text'}


def test_an_rpc_handler_gets_the_content_and_a_function_to_reply_with(bench):
    class Handling(Processor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content, reply_func):
            reply_func(messaging.MessageResult([content, 'got']))

    run(bench, Handling)
    assert content_of(bench.producer().rpc_echo('text'))['value'] == [{'parameters': 'text'}, 'got']


def test_a_full_body_handler_gets_the_body(bench):
    class Handling(Processor):
        @messaging.MessageHandlerFullBody('command', 'echo')
        def msg_echo(self, body):
            self.seen.put(body)

    processor = run(bench, Handling)
    producer = bench.producer(EchoProducer, messaging.Fingerprint('sender', 'test'))
    producer.message_echo('text')
    assert processor.seen.next() == command('echo', 'text', fingerprint=producer.fingerprint)


def test_a_message_handler_gets_no_rpc_and_an_rpc_handler_no_message(bench):
    class Handling(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put('message')

        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content, reply_func):
            self.seen.put('rpc')
            reply_func(1)

    processor = run(bench, Handling)
    producer = bench.producer()
    producer.message_echo()
    producer.rpc_echo()
    assert processor.seen.take(2) == ['message', 'rpc']
    assert processor.seen.empty()


def test_a_handler_gets_the_messages_of_its_type_and_name_alone(bench):
    class Handling(Processor):
        @messaging.MessageHandler('status', 'online')
        def msg_online(self, content):
            self.seen.put('online')

        @messaging.MessageHandler('command', 'online')
        def msg_other(self, content):
            self.seen.put('command')

    processor = run(bench, Handling)
    producer = bench.producer(StatusProducer)
    for send in (producer.message_status, producer.message_unknown):
        send('offline')
    producer.message_status('online')
    producer.message_online()
    assert processor.seen.take(2) == ['online', 'command']


def test_without_a_name_a_handler_gets_every_name_that_no_named_handler_takes(bench):
    class Handling(Processor):
        @messaging.MessageHandler('command')
        def msg_any(self, content):
            self.seen.put(('any', content['parameters']))

        @messaging.MessageHandler('command', 'named')
        def msg_named(self, content):
            self.seen.put(('named', content['parameters']))

    processor = run(bench, Handling)
    producer = bench.producer(StatusProducer)
    producer.message_first(1)
    producer.message_named(2)
    producer.message_status('online')
    producer.message_second(3)
    assert processor.seen.take(3) == [('any', 1), ('named', 2), ('any', 3)]


def test_without_a_name_an_rpc_handler_gets_every_name_that_no_named_one_takes(bench):
    class Handling(Processor):
        @messaging.RpcHandler('command', 'named')
        def rpc_named(self, content, reply_func):
            reply_func('named')

        @messaging.RpcHandler('command')
        def rpc_any(self, content, reply_func):
            reply_func('any')

    run(bench, Handling)
    producer = bench.producer()
    assert content_of(producer.rpc_named())['value'] == 'named'
    assert content_of(producer.rpc_other())['value'] == 'any'


def test_a_full_body_handler_without_a_name_gets_what_is_left_as_well(bench):
    class Handling(Processor):
        @messaging.MessageHandlerFullBody('status')
        def msg_status(self, body):
            self.seen.put(body['name'])

    processor = run(bench, Handling)
    bench.producer(StatusProducer).message_status('online')
    assert processor.seen.next() == 'online'


def test_a_method_may_handle_several_names(bench):
    class Handling(Processor):
        @messaging.MessageHandler('command', 'one')
        @messaging.MessageHandler('command', 'two')
        def msg_both(self, content):
            self.seen.put(content['parameters'])

    processor = run(bench, Handling)
    producer = bench.producer()
    producer.message_one(1)
    producer.message_two(2)
    assert processor.seen.take(2) == [1, 2]


def test_a_handler_may_be_called_as_any_method(bench):
    processor = bench.closing(Echo([]))
    processor.msg_echo({'parameters': 'direct'})
    assert processor.seen.next() == 'direct'


# Handler classes


def test_a_handler_class_sees_data_and_processor(bench):
    class Handling(Processor):
        @messaging.MessageHandler('command', 'echo')
        class Content(messaging.Handler):
            def call(self):
                self.processor.seen.put((self.data, self.reply_func))

        @messaging.MessageHandlerFullBody('command', 'echo')
        class Body(messaging.Handler):
            def call(self):
                self.processor.seen.put(self.data['name'])

    processor = run(bench, Handling)
    bench.producer().message_echo('text')
    assert processor.seen.take(2) == [({'parameters': 'text'}, None), 'echo']


def test_a_handler_class_answers_by_its_reply_func(bench):
    class Handling(Processor):
        @messaging.RpcHandler('command', 'echo')
        class Answer(messaging.Handler):
            def call(self):
                self.reply_func(messaging.MessageResult([self.data['parameters'], self.processor.fingerprint['name']]))

    bench.run(Handling(EQK, {'name': 'me'}))
    assert content_of(bench.producer().rpc_echo('text'))['value'] == ['text', 'me']


def test_a_handler_class_answers_by_what_call_returns(bench):
    class Handling(Processor):
        @messaging.RpcHandler('command', 'echo')
        class Answer(messaging.Handler):
            def call(self):
                return 7

    run(bench, Handling)
    assert content_of(bench.producer().rpc_echo())['value'] == 7


def test_a_new_handler_is_made_for_each_message(bench):
    class Handling(Processor):
        @messaging.MessageHandler('command', 'echo')
        class Count(messaging.Handler):
            calls = 0

            def call(self):
                self.calls += 1
                self.processor.seen.put(self.calls)

    processor = run(bench, Handling)
    producer = bench.producer()
    producer.message_echo()
    producer.message_echo()
    assert processor.seen.take(2) == [1, 1]


# Filters


def numbered(data, number=0, suffix=''):
    """A filter that notes its number."""
    data['parameters'].append(f'{number}{suffix}')
    return data


@pytest.mark.parametrize('order', ['before', 'after', 'around'])
def test_a_filter_may_stand_on_either_side_of_the_handlers_decorator(bench, order):
    handler = messaging.MessageHandler('command', 'echo')
    nearest, farther = messaging.MessageFilter(numbered, 1), messaging.MessageFilter(numbered, 2)
    decorators = {
        'before': [farther, nearest, handler],
        'after': [handler, farther, nearest],
        'around': [farther, handler, nearest],
    }

    def msg_echo(self, content):
        self.seen.put(content['parameters'])

    for decorator in reversed(decorators[order]):
        msg_echo = decorator(msg_echo)
    processor = run(bench, type('Filtering', (Processor,), {'msg_echo': msg_echo}))
    bench.producer().message_echo([])
    assert processor.seen.next() == ['1', '2']


def test_a_decorator_of_ones_own_may_set_its_data(bench):
    class Event(messaging.Message):
        type = 'event'

    class EventHandler(messaging.MessageHandler):
        def __init__(self, name):
            self.handler_data = ('message', 'event', name, 'fingerprint')

    class Watching(Processor):
        @EventHandler('door')
        def msg_door(self, fingerprint):
            self.seen.put(fingerprint)

    processor = run(bench, Watching)
    bench.publish(command('door', type='event', fingerprint={'name': 'me'}))
    assert processor.seen.next() == {'name': 'me'}


@pytest.mark.parametrize(
    'data', [None, ('message', 'event'), ('other', 'event', 'door', None), ('rpc', 1, 'door', None)]
)
def test_a_decorator_with_wrong_data_is_a_clear_error(data):
    class Odd(messaging.MessageHandler):
        def __init__(self):
            if data is not None:
                self.handler_data = data

    with pytest.raises(messaging.ConfigurationError, match='@Odd'):
        Odd()(lambda self, content: None)


def test_stop_iteration_ends_the_processor_and_leaves_what_comes_after_it(bench):
    class Ending(Processor):
        @messaging.MessageHandler('command', 'end')
        def msg_end(self, content):
            self.seen.put('end')
            raise StopIteration

        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put('echo')

    processor = bench.closing(Ending())
    producer = bench.producer()
    producer.message_end()
    for _ in range(3):
        producer.message_echo()
    producer.flush(TIMEOUT)
    scheduler = MicroScheduler(autoquit=True)
    scheduler.add_microthread(processor)
    for _ in scheduler.main():
        pass
    assert list(processor.seen.queue) == ['end']
    eventually(lambda: bench.count('echo-queue') == 3)


def test_stop_iteration_ends_a_processor_without_a_broker():
    class Ending(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'end')
        def msg_end(self, content):
            raise StopIteration

    with Ending.test_client({'name': 'me'}) as client:
        client.send(messaging.MessageCommand('end'))
        assert client.ended
        assert len(client.acked) == 1


def test_a_handler_class_may_do_its_work_in_its_constructor(bench):
    class Whole(Processor):
        @messaging.MessageHandler('command', 'echo')
        class Echo(messaging.Handler):
            def __init__(self, processor, data, reply_func=None):
                processor.seen.put(data['parameters'])

    processor = run(bench, Whole)
    bench.producer().message_echo('text')
    assert processor.seen.next() == 'text'
    bench.producer().message_echo('again')
    assert processor.seen.next() == 'again'


def test_a_filter_gets_its_arguments(bench):
    class Filtering(Processor):
        @messaging.MessageFilter(numbered, 5, suffix='!')
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(content['parameters'])

    processor = run(bench, Filtering)
    bench.producer().message_echo([])
    assert processor.seen.next() == ['5!']


def test_a_filter_gets_a_copy_which_the_other_handlers_do_not_see(bench):
    class Filtering(Processor):
        @messaging.MessageFilter(numbered, 1)
        @messaging.MessageHandler('command', 'echo')
        def msg_filtered(self, content):
            self.seen.put(content['parameters'])

        @messaging.MessageHandler('command', 'echo')
        def msg_plain(self, content):
            self.seen.put(content['parameters'])

    processor = run(bench, Filtering)
    bench.producer().message_echo([])
    assert processor.seen.take(2) == [['1'], []]


@pytest.mark.parametrize('decorator', [messaging.MessageHandler, messaging.MessageHandlerFullBody])
def test_a_filter_gets_what_the_handler_would_get_and_says_what_it_gets_instead(bench, decorator):
    given = []

    class Filtering(Processor):
        @messaging.MessageFilter(lambda data: given.append(data) or 'instead')
        @decorator('command', 'echo')
        def msg_echo(self, data):
            self.seen.put(data)

    processor = run(bench, Filtering)
    producer = bench.producer()
    producer.message_echo('text')
    assert processor.seen.next() == 'instead'
    body = command('echo', 'text', fingerprint=producer.fingerprint)
    assert given == [body if decorator is messaging.MessageHandlerFullBody else body['content']]


def test_a_filter_stands_before_a_handler_class_as_well(bench):
    class Filtering(Processor):
        @messaging.MessageFilter(numbered, 1)
        @messaging.MessageHandler('command', 'echo')
        class Note(messaging.Handler):
            def call(self):
                self.processor.seen.put(self.data['parameters'])

    processor = run(bench, Filtering)
    bench.producer().message_echo([])
    assert processor.seen.next() == ['1']


def test_a_filter_stands_before_an_rpc_handler_as_well(bench):
    class Filtering(Processor):
        @messaging.RpcHandler('command', 'echo')
        @messaging.MessageFilter(numbered, 1)
        def rpc_echo(self, content, reply_func):
            reply_func(content['parameters'])

    run(bench, Filtering)
    assert content_of(bench.producer().rpc_echo([]))['value'] == ['1']


def dropping(data):
    raise messaging.FilterError('too old')


def failing(data):
    return data['no such key']


@pytest.mark.parametrize(('drop', 'words'), [(dropping, 'too old'), (failing, 'KeyError')])
def test_an_exception_of_a_filter_drops_the_message_for_that_handler_alone_and_is_logged(bench, drop, words):
    class Filtering(Processor):
        @messaging.MessageFilter(drop)
        @messaging.MessageHandler('command', 'echo')
        def msg_first(self, content):
            self.seen.put('first')

        @messaging.MessageHandler('command', 'echo')
        def msg_second(self, content):
            self.seen.put('second')

    processor, running = guarded(bench, Filtering)
    bench.producer().message_echo()
    assert processor.seen.next() == 'second'
    running.stop()
    assert processor.seen.empty()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}
    bench.log.expect('WARNING', 'dropped by filter', words)


def test_an_rpc_that_a_filter_drops_is_answered_with_an_error(bench):
    class Filtering(Processor):
        @messaging.MessageFilter(dropping)
        @messaging.RpcHandler('command', 'echo')
        def rpc_echo(self, content, reply_func):
            reply_func('never')

    run(bench, Filtering)
    reply = bench.producer().rpc_echo()
    assert isinstance(reply, messaging.MessageResultError)
    assert 'too old' in content_of(reply)['message']


# Several handlers


def test_all_handlers_of_a_message_run_in_the_order_of_their_definition(bench):
    class Handling(Processor):
        @messaging.MessageHandler('command', 'echo')
        def z_first(self, content):
            self.seen.put(1)

        @messaging.MessageHandlerFullBody('command', 'echo')
        def a_second(self, body):
            self.seen.put(2)

        @messaging.MessageHandler('command', 'echo')
        class Third(messaging.Handler):
            def call(self):
                self.processor.seen.put(3)

        @messaging.MessageHandler('command', 'echo')
        def b_fourth(self, content):
            self.seen.put(4)

    processor = run(bench, Handling)
    bench.producer().message_echo()
    assert processor.seen.take(4) == [1, 2, 3, 4]


@pytest.mark.parametrize('error', [ValueError('broken'), messaging.RejectMessage()], ids=['error', 'reject'])
def test_the_others_run_also_where_one_raises_and_the_message_is_rejected_once_after_them(bench, error):
    class Handling(Processor):
        @messaging.MessageHandler('command', 'echo')
        def first(self, content):
            self.seen.put(1)
            raise error

        @messaging.MessageHandler('command', 'echo')
        def second(self, content):
            self.seen.put(2)
            raise error

        @messaging.MessageHandler('command', 'echo')
        def third(self, content):
            self.seen.put(3)

    processor, running = guarded(bench, Handling)
    bench.producer().message_echo()
    assert processor.seen.take(3) == [1, 2, 3]
    running.stop()
    assert processor.seen.empty()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 1}


def test_two_rpc_handlers_for_one_name_in_one_class_are_told_when_the_processor_is_made():
    class Handling(Processor):
        @messaging.RpcHandler('command', 'echo')
        def rpc_first(self, content, reply_func):
            """Never called."""

        @messaging.RpcHandler('command', 'echo')
        def rpc_last(self, content, reply_func):
            """Never called, either."""

    with pytest.raises(messaging.ConfigurationError, match=r"'echo', .* rpc_first, rpc_last"):
        Handling()


def test_two_rpc_handlers_for_every_other_name_are_told_as_well():
    class Handling(Processor):
        @messaging.RpcHandler('command')
        def rpc_first(self, content, reply_func):
            """Never called."""

        @messaging.RpcHandler('command')
        class RpcLast(messaging.Handler):
            def call(self):
                """Never called, either."""

    with pytest.raises(messaging.ConfigurationError, match='rpc_first, RpcLast'):
        Handling()


@pytest.mark.parametrize(
    ('type', 'name', 'fault'),
    [
        ('comand', 'echo', "msg_echo takes messages of type 'comand': is 'command' meant"),
        ('Command', 'echo', "is 'command' meant"),
        ('statuses', None, "is 'status' meant"),
        ('result ', None, "is 'result' meant"),
        ('echo', 'command', 'the type comes first'),
        ('echo', None, 'the type comes first'),
        ('', 'echo', 'the type comes first'),
        # No class of another test may have it: such a class counts for as long as it is somewhere in memory.
        ('knock', 'door', "msg_echo takes messages of type 'knock', which no messages have. The types are 'command', "),
        ('rpc', 'echo', 'one of your own is that of a class derived from messaging.Message'),
    ],
)
def test_a_type_that_is_mistyped_is_told_with_the_method(type, name, fault):
    class Handling(Processor):
        @messaging.MessageHandler(type, name)
        def msg_echo(self, content):
            """Never called."""

    with pytest.raises(messaging.ConfigurationError, match=fault):
        Handling()


def test_a_type_of_ones_own_may_be_like_another_one():
    class Commando(messaging.Message):
        type = 'commando'

    class Handling(messaging.MessageProcessor):
        @messaging.MessageHandler('commando')
        def msg_commando(self, content):
            """Never called."""

    with Handling.test_client() as client:
        client.send(Commando())
        assert len(client.acked) == 1


@pytest.mark.parametrize('kind', [staticmethod, classmethod])
@pytest.mark.parametrize('is_outer', [True, False])
def test_a_class_method_and_a_static_one_are_handlers_in_any_order_of_decorators(kind, is_outer):
    rpc, own = messaging.RpcHandler('command', 'echo'), () if kind is staticmethod else (Echo,)
    parameters = ', '.join(['cls'] * len(own) + ['content', 'reply_func'])
    for names in (parameters, 'content'):
        function = eval(f'lambda {names}: content["parameters"]')
        method = kind(rpc(function)) if is_outer else rpc(kind(function))
        handling = type('Handling', (messaging.MessageProcessor,), {'rpc_echo': method})
        if names == parameters:
            with handling.test_client() as client:
                assert client.send(messaging.RpcCommand('echo', 'heard')).value == 'heard'
        else:
            with pytest.raises(messaging.ConfigurationError, match=r'rpc_echo.* does not fit its decorator'):
                handling.test_client()


def test_a_method_that_does_not_fit_its_decorator_is_told():
    cases = {
        'rpc_echo.content. does not fit its decorator: @RpcHandler calls it with content, reply_func': (
            messaging.RpcHandler,
            'rpc_echo',
            lambda self, content: None,
        ),
        'msg_echo.content, more. does not fit its decorator: @MessageHandler calls it with content': (
            messaging.MessageHandler,
            'msg_echo',
            lambda self, content, more: None,
        ),
        'msg_body.. does not fit its decorator: @MessageHandlerFullBody calls it with body': (
            messaging.MessageHandlerFullBody,
            'msg_body',
            lambda self: None,
        ),
    }
    for fault, (decorator, name, method) in cases.items():
        handling = type('Handling', (messaging.MessageProcessor,), {name: decorator('command', 'echo')(method)})
        with pytest.raises(messaging.ConfigurationError, match=fault), handling.test_client():
            pass


def test_a_mixin_may_leave_it_to_its_subclass_to_make_its_method_a_handler():
    class Mixin:
        @messaging.Retry()
        def msg_echo(self, content):
            """Replaced below."""

    class Handling(Mixin, messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            return super().msg_echo(content)

    with Handling.test_client() as client:
        client.send(messaging.MessageCommand('echo'))
        assert len(client.acked) == 1


def test_a_handler_class_that_does_not_fit_is_told():
    class Handling(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'echo')
        class Echo(messaging.Handler):
            def call(self, more):
                """Never called."""

    with pytest.raises(messaging.ConfigurationError, match=r'Handling\.Echo\.call'), Handling.test_client():
        pass


@pytest.mark.parametrize(
    'method',
    [
        lambda self, content, more=None: None,
        lambda self, *content: None,
        lambda self, content, **more: None,
        functools.partialmethod(lambda self, more, content: None, 1),
        staticmethod(lambda content: None),
    ],
)
def test_a_method_may_take_more_than_it_gets(method):
    decorated = messaging.MessageHandler('command', 'echo')(method)
    handling = type('Handling', (messaging.MessageProcessor,), {'msg_echo': decorated})
    with handling.test_client():
        pass


def test_an_rpc_handler_of_a_subclass_wins_over_its_parents(bench):
    class Child(Echo):
        @messaging.RpcHandler('command', 'echo')
        def rpc_of_the_child(self, content, reply_func):
            reply_func('child')

    run(bench, Child)
    assert content_of(bench.producer().rpc_echo('text'))['value'] == 'child'


@pytest.mark.parametrize(
    ('filtering', 'fault'),
    [
        ((dropping, 1), r'filter dropping of the handler Handling\.msg_echo takes \(data\), .* the message, 1 \('),
        ((dropping,), None),
        ((lambda data, *more, **named: data, 1, 2), None),
        ((lambda: None,), 'is called with the message'),
        ((asyncio.sleep,), 'filter sleep of .* must be a plain function: a coroutine is not waited for'),
        ((str.upper, 'utf-8'), 'is called with the message'),
        ((dict,), None),
    ],
)
def test_a_filter_that_cannot_be_called_with_a_message_is_told_when_the_processor_is_made(filtering, fault):
    class Handling(messaging.MessageProcessor):
        @messaging.MessageFilter(*filtering)
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            """Never called."""

    told = contextlib.nullcontext() if fault is None else pytest.raises(messaging.ConfigurationError, match=fault)
    with told, Handling.test_client():
        pass


@pytest.mark.parametrize(
    ('decorator', 'name'),
    [
        (messaging.MessageFilter(dropping), 'MessageFilter'),
        (messaging.Timeout(5), 'Timeout'),
        (messaging.Retry(), 'Retry'),
        (messaging.Threaded, 'Threaded'),
    ],
)
def test_a_method_that_is_decorated_and_no_handler_is_told(decorator, name):
    handling = type('Handling', (messaging.MessageProcessor,), {'msg_echo': decorator(lambda self, content: None)})
    with pytest.raises(messaging.ConfigurationError, match=rf'msg_echo has @{name}, but no decorator that says'):
        handling.test_client().__enter__()


# Inheritance


def test_what_decorates_the_method_that_replaces_a_handler_counts():
    class Parent(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'echo')
        @messaging.Timeout(5)
        @messaging.Retry(delays=(1,))
        def msg_echo(self, content):
            yield

    class Child(Parent):
        @messaging.Timeout(60)
        def msg_echo(self, content):
            yield

    with Parent.test_client() as parent, Child.test_client() as child:
        (of_parent,), (of_child,) = (
            [entry for entry in client.processor._dispatcher.entries if entry.data.name == 'echo']
            for client in (parent, child)
        )
    assert (of_parent.timeout, of_child.timeout) == (5, 60)
    assert of_child.retries == of_parent.retries != []


@pytest.mark.parametrize('decorated', [True, False])
def test_a_method_of_the_same_name_replaces_its_parents_handler(bench, decorated):
    def msg_echo(self, content):
        self.seen.put('child')

    if decorated:
        msg_echo = messaging.MessageHandler('command', 'echo')(msg_echo)
    processor = run(bench, type('Child', (Echo,), {'msg_echo': msg_echo}))
    producer = bench.producer()
    producer.message_echo('text')
    producer.message_echo('text')
    assert processor.seen.take(2) == ['child', 'child']


def test_a_method_that_replaces_a_handler_may_call_it(bench):
    class Child(Echo):
        def msg_echo(self, content):
            self.seen.put('child')
            super().msg_echo(content)

    processor = run(bench, Child)
    bench.producer().message_echo('text')
    assert processor.seen.take(2) == ['child', 'text']


def test_a_method_decorated_for_another_name_takes_that_name_alone(bench):
    class Child(Echo):
        @messaging.MessageHandler('command', 'renamed')
        def msg_echo(self, content):
            self.seen.put('renamed')

    processor = run(bench, Child)
    producer = bench.producer()
    producer.message_echo()
    producer.message_renamed()
    assert processor.seen.next() == 'renamed'
    assert processor.seen.empty()


def test_a_subclass_adds_to_its_parents_handlers(bench):
    class Child(Echo):
        @messaging.MessageHandler('command', 'echo')
        def msg_more(self, content):
            self.seen.put('more')

    processor = run(bench, Child)
    bench.producer().message_echo('text')
    assert processor.seen.take(2) == ['text', 'more']


def test_handlers_of_a_mixin_count(bench):
    class Mixin:
        @messaging.MessageHandler('command', 'mixed')
        def msg_mixed(self, content):
            self.seen.put('mixed')

    processor = run(bench, type('Mixed', (Mixin, Echo), {}))
    bench.producer().message_mixed()
    assert processor.seen.next() == 'mixed'


def test_siblings_never_see_each_others_handlers(bench):
    class Brother(Processor):
        @messaging.MessageHandler('command', 'brother')
        def msg_brother(self, content):
            self.seen.put('brother')

    class Sister(Processor):
        @messaging.MessageHandler('command', 'sister')
        def msg_sister(self, content):
            self.seen.put('sister')

    brother, sister = Brother(), Sister([(EchoExchange, [('sisters-queue', 'echo-rk')])])
    bench.run(brother, sister)
    producer = bench.producer()
    producer.message_brother()
    producer.message_sister()
    producer.message_brother()
    producer.message_sister()
    assert brother.seen.take(2) == ['brother', 'brother']
    assert sister.seen.take(2) == ['sister', 'sister']
    assert brother.seen.empty()
    assert sister.seen.empty()


def test_a_parent_does_not_see_the_handlers_of_its_subclass(bench):
    class Child(Echo):
        @messaging.RpcHandler('command', 'childish')
        def rpc_childish(self, content, reply_func):
            reply_func(1)

    run(bench, Echo)
    assert isinstance(bench.producer().rpc_childish(), messaging.MessageResultError)


# No handler


def test_a_message_without_handlers_is_acknowledged(bench):
    processor, running = guarded(bench, Echo)
    producer = bench.producer(StatusProducer)
    producer.message_unknown()
    producer.message_status('unknown')
    producer.message_echo('last')
    assert processor.seen.next() == 'last'
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}


def test_an_rpc_without_a_handler_is_answered_at_once_with_an_error_that_names_the_command(bench):
    run(bench, Echo)
    reply = bench.producer().rpc_surprise(_timeout=TIMEOUT)
    assert isinstance(reply, messaging.MessageResultError)
    assert "'surprise'" in content_of(reply)['message']


def test_a_processor_without_any_rpc_handler_answers_so_as_well(bench):
    run(bench, Processor)
    assert "'surprise'" in content_of(bench.producer().rpc_surprise())['message']


# Replies


def test_reply_func_may_be_called_after_the_handler_has_returned(bench):
    class Waiting(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            self.seen.put(reply_func)

    processor = run(bench, Waiting)
    future = bench.producer().rpc_future_ask()
    reply_func = processor.seen.next()
    thread = threading.Thread(target=reply_func, args=(messaging.MessageResult('from a thread'),))
    thread.start()
    assert content_of(future.result(TIMEOUT))['value'] == 'from a thread'
    thread.join()


def test_an_rpc_is_acknowledged_when_its_handler_returns_though_the_reply_comes_later(bench):
    class Waiting(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            self.seen.put(reply_func)

    processor, running = guarded(bench, Waiting)
    future = bench.producer().rpc_future_ask()
    reply_func = processor.seen.next()
    reply_func('later')
    future.result(TIMEOUT)
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}


def test_what_an_rpc_handler_returns_is_sent_as_its_result(bench):
    class Returning(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            return content['parameters']

    run(bench, Returning)
    producer = bench.producer()
    for value in ('text', 0, False, '', [], {'a': 1}):
        reply = producer.rpc_ask(value)
        assert isinstance(reply, messaging.MessageResult)
        assert content_of(reply)['value'] == value


def test_a_message_that_an_rpc_handler_returns_is_sent_as_it_is(bench):
    class Returning(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            return messaging.MessageResultError('returned')

    run(bench, Returning)
    reply = bench.producer().rpc_ask()
    assert isinstance(reply, messaging.MessageResultError)
    assert content_of(reply)['message'] == 'returned'


def test_none_returned_is_no_reply(bench):
    class Returning(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            self.seen.put(content)

    run(bench, Returning)
    assert content_of(bench.producer().rpc_ask(_timeout=0.1))['value'] == 'TimeoutError'


def test_the_first_reply_counts(bench):
    class Repeating(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            reply_func('first')
            reply_func('second')
            return 'returned'

    _, running = guarded(bench, Repeating)
    bench.bare.queue_declare('replies', exclusive=True)
    for _ in range(2):
        bench.publish(command('ask', category='rpc'), reply_to='replies')
        assert bench.await_message('replies').body['content']['value'] == 'first'
    running.stop()
    assert bench.count('replies') == 0
    bench.log.expect('WARNING', 'second answer')


def test_a_plain_value_given_to_reply_func_is_wrapped(bench):
    class Plain(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            reply_func({'plain': None})

    run(bench, Plain)
    assert content_of(bench.producer().rpc_ask()) == {'type': 'success', 'value': {'plain': None}, 'message': ''}


def test_a_reply_carries_the_processors_fingerprint(bench):
    bench.run(Echo(EQK, messaging.Fingerprint('answerer', 'test')))
    fingerprint = bench.producer().rpc_echo().body['fingerprint']
    assert fingerprint == messaging.Fingerprint('answerer', 'test').as_dict()


def test_a_reply_that_cannot_be_encoded_is_an_exception_for_the_caller(bench):
    class Wrong(Processor):
        @messaging.RpcHandler('command', 'ask')
        def rpc_ask(self, content, reply_func):
            return {'thing': object()}

    run(bench, Wrong)
    reply = bench.producer().rpc_ask()
    assert content_of(reply)['value'] == 'EncodingError'
    assert 'thing' in content_of(reply)['message']


def test_an_rpc_without_reply_to_is_handled_and_harms_nothing(bench):
    _, running = guarded(bench, Echo)
    bench.publish(command('echo', 'text', category='rpc'))
    assert content_of(bench.producer().rpc_echo('next'))['value'] == 'next'
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}
    bench.log.expect('WARNING', 'reply_to')


# Handlers that raise


class Failing(Processor):
    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content):
        raise ValueError('broken')

    @messaging.RpcHandler('command', 'fail')
    def rpc_fail(self, content, reply_func):
        raise ValueError('broken')

    @messaging.MessageHandler('command', 'reject')
    def msg_reject(self, content):
        raise messaging.RejectMessage('not for me')

    @messaging.RpcHandler('command', 'reject')
    def rpc_reject(self, content, reply_func):
        raise messaging.RejectMessage('not for me')

    @messaging.MessageHandler('command', 'drop')
    def msg_drop(self, content):
        raise messaging.FilterError('not today')

    @messaging.RpcHandler('command', 'drop')
    def rpc_drop(self, content, reply_func):
        raise messaging.FilterError('not today')

    @messaging.RpcHandler('command', 'answer_and_fail')
    def rpc_answer_and_fail(self, content, reply_func):
        reply_func('answered')
        raise ValueError('broken')

    @messaging.MessageHandler('command', 'good')
    def msg_good(self, content):
        self.seen.put('good')


def test_a_handler_that_raises_has_its_message_rejected_and_the_consumer_goes_on(bench):
    processor, running = guarded(bench, Failing)
    producer = bench.producer()
    producer.message_fail('text')
    producer.message_good()
    assert processor.seen.next() == 'good'
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 1}
    dead = bench.get('dead')
    assert dead.parameters == 'text'
    assert [death['reason'] for death in dead.properties.headers['x-death']] == ['rejected']


def test_what_a_handler_raises_is_logged_with_its_traceback(bench):
    run(bench, Failing)
    bench.producer().message_fail()
    line = bench.log.expect('ERROR', 'Failing.msg_fail', 'echo-queue')
    assert 'Traceback' in line
    assert 'ValueError: broken' in line


def test_the_first_loss_of_a_queue_without_dead_letters_is_warned_of_once(bench):
    processor = run(bench, Failing)
    producer = bench.producer()
    producer.message_fail()
    producer.message_reject()
    producer.message_good()
    processor.seen.next()
    assert len(bench.log.find('WARNING', "queue 'echo-queue' is lost", 'x-dead-letter-exchange')) == 1


def test_a_queue_with_dead_letters_is_not_warned_of(bench):
    processor, _ = guarded(bench, Failing)
    producer = bench.producer()
    producer.message_fail()
    producer.message_good()
    processor.seen.next()
    assert not bench.log.find('is lost')


def test_an_rpc_caller_gets_the_exception_of_the_handler(bench):
    run(bench, Failing)
    reply = bench.producer().rpc_fail()
    assert isinstance(reply, messaging.MessageResultException)
    assert content_of(reply) == {'type': 'exception', 'value': 'ValueError', 'message': 'broken'}


def test_an_rpc_caller_who_has_a_reply_keeps_it(bench):
    run(bench, Failing)
    bench.bare.queue_declare('replies', exclusive=True)
    bench.publish(command('answer_and_fail', category='rpc'), reply_to='replies')
    assert bench.await_message('replies').body['content']['value'] == 'answered'
    assert content_of(bench.producer().rpc_fail())['value'] == 'ValueError'
    assert bench.count('replies') == 0


def test_a_failed_rpc_is_dead_lettered_too(bench):
    _, running = guarded(bench, Failing)
    bench.producer().rpc_fail()
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 1}


def test_reject_message_rejects_quietly(bench):
    processor, running = guarded(bench, Failing)
    producer = bench.producer()
    producer.message_reject()
    producer.message_good()
    processor.seen.next()
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 1}
    assert not bench.log.find('ERROR')
    assert not bench.log.find('WARNING')
    assert 'Traceback' not in bench.log.text


def test_an_rpc_caller_learns_of_a_rejection(bench):
    run(bench, Failing)
    reply = bench.producer().rpc_reject()
    assert not reply
    assert 'not for me' in content_of(reply)['message']


def test_filter_error_drops(bench):
    processor, running = guarded(bench, Failing)
    producer = bench.producer()
    producer.message_drop()
    producer.message_good()
    processor.seen.next()
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}
    assert bench.log.find('WARNING', 'not today')


def test_an_rpc_caller_learns_of_a_drop(bench):
    run(bench, Failing)
    reply = bench.producer().rpc_drop()
    assert isinstance(reply, messaging.MessageResultError)
    assert 'not today' in content_of(reply)['message']


def test_ack_and_restart_acknowledges_and_restarts(bench):
    class Restarting(Processor):
        @messaging.MessageHandler('command', 'again')
        def msg_again(self, content):
            raise messaging.AckAndRestart

        def restart(self):
            self.seen.put('restarted')

    processor, running = guarded(bench, Restarting)
    bench.producer().message_again()
    assert processor.seen.next() == 'restarted'
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 0}


# Messages that make no sense


NONSENSE = {
    'no JSON': (b'{"type": "command"', 'not JSON'),
    'no text': (b'\xff\xfe\x00', 'UTF-8'),
    'empty': (b'', 'not JSON'),
    'a list': ([1, 2], 'a message must be a dictionary, but is list'),
    'null': (None, 'a message must be a dictionary, but is null'),
    'no type': (command(type=...), "'type' is missing"),
    'no name': (command(name=...), "'name' is missing"),
    'no category': (command(category=...), "'category' is missing"),
    'no content': (command(content=...), "'content' is missing"),
    'a numeric type': (command(type=7), "'type' must be text, but is int"),
    'a listed name': (command(name=['echo']), "'name' must be text, but is list"),
    'another category': (command(category='letter'), "'letter'"),
    'a text as content': (command(content='text'), "'content' must be a dictionary, but is str"),
    'a numeric version': (command(version=2), "'version' must be text, but is int"),
    'a text as fingerprint': (command(fingerprint='me'), "'fingerprint' must be a dictionary"),
    'reserved for a list': (command(_reserved=[]), "'_reserved' must be a dictionary"),
    'deeply nested': (b'[' * 100_000, ''),
}


def test_what_cannot_be_understood_is_rejected_with_a_log_line_that_names_the_fault(bench):
    processor, running = guarded(bench, Echo)
    for number, (body, fault) in enumerate(NONSENSE.values()):
        bench.publish(body)
        bench.publish(command('echo', number))
        assert processor.seen.next() == number
        assert bench.log.find('WARNING', "queue 'echo-queue'", 'is rejected', fault), (fault, bench.log.text)
        bench.log.lines.clear()
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': len(NONSENSE)}


def test_whoever_waits_for_a_reply_to_what_makes_no_sense_is_told(bench):
    run(bench, Echo)
    bench.bare.queue_declare('replies', exclusive=True)
    bench.publish(command(category='rpc', content='text'), reply_to='replies', correlation_id='17')
    got = bench.await_message('replies')
    assert got.properties.correlation_id == '17'
    assert got.body['content']['type'] == 'error'
    assert "'content' must be a dictionary" in got.body['content']['message']


@pytest.mark.parametrize('headers', HOSTILE.values(), ids=HOSTILE)
def test_a_message_with_hostile_headers_harms_nothing_where_no_handler_asks_for_them(bench, headers):
    processor = run(bench, Echo)
    bench.publish_hostile(headers)
    bench.publish(command('echo', 'good'))
    assert processor.seen.take(2) == [None, 'good']


@pytest.mark.parametrize('headers', HOSTILE.values(), ids=HOSTILE)
def test_a_handler_that_asks_for_hostile_headers_has_the_message_rejected(bench, headers):
    class Curious(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(messaging.current_delivery().headers)

    processor, running = guarded(bench, Curious)
    bench.publish_hostile(headers)
    bench.publish(command('echo', 'good'), headers={'good': 1})
    assert processor.seen.next() == {'good': 1}
    bench.log.expect('ERROR', 'DecodingError', 'AMQP properties cannot be decoded')
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 1}


@pytest.mark.parametrize('headers', HOSTILE.values(), ids=HOSTILE)
def test_an_rpc_with_hostile_headers_is_rejected_and_the_next_is_answered(bench, headers):
    _, running = guarded(bench, Echo)
    bench.publish_hostile(headers, body=command(category='rpc'))
    assert content_of(bench.producer().rpc_echo('good'))['value'] == 'good'
    bench.log.expect('WARNING', 'is rejected', 'cannot be decoded')
    running.stop()
    assert bench.broker.queues() == {'echo-queue': 0, 'dead': 1}


def test_an_envelope_without_its_optional_fields_is_handled(bench):
    processor = run(bench, Echo)
    bench.publish(command('echo', 'text', version=..., fingerprint=..., _reserved=...))
    assert processor.seen.next() == 'text'


# The delivery in hand


def test_current_delivery_tells_about_the_message_in_hand(bench):
    class Looking(Processor):
        @messaging.MessageHandler('command', 'look')
        def msg_look(self, content):
            delivery = messaging.current_delivery()
            self.seen.put((delivery.exchange, delivery.routing_key, delivery.queue, delivery.redelivered))
            self.seen.put((delivery.headers, delivery.properties.message_id))

    processor = run(bench, Looking)
    receipt = bench.producer().message_look(_headers={'h': 1})
    assert processor.seen.next() == ('echo-exchange', 'echo-rk', 'echo-queue', False)
    assert processor.seen.next() == ({'h': 1}, receipt.message_id)


def test_current_delivery_says_what_was_redelivered(bench):
    class Looking(Processor):
        @messaging.MessageHandler('command', 'look')
        def msg_look(self, content):
            self.seen.put(messaging.current_delivery().redelivered)

    bench.consumer()
    bench.producer().message_look().wait(TIMEOUT)
    assert bench.bare.basic_get('echo-queue')[0] is not None
    bench.bare.close()
    assert run(bench, Looking).seen.next() is True


def test_headers_of_a_message_without_any_are_empty(bench):
    class Looking(Processor):
        @messaging.MessageHandler('command', 'look')
        def msg_look(self, content):
            self.seen.put(messaging.current_delivery().headers)

    processor = run(bench, Looking)
    bench.producer().message_look()
    assert processor.seen.next() == {}


def test_delivery_is_the_current_delivery_for_a_type_checker_too(bench):
    class Telling(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content):
            self.seen.put(messaging.delivery() is messaging.current_delivery())

    processor = run(bench, Telling)
    bench.producer().message_echo()
    assert processor.seen.next() is True


def test_outside_a_handler_there_is_no_delivery():
    with pytest.raises(messaging.NoDelivery, match='no handler is running'):
        messaging.delivery()


def test_outside_a_handler_there_is_no_current_delivery(bench):
    processor = run(bench, Echo)
    bench.producer().message_echo()
    processor.seen.next()
    assert messaging.current_delivery() is None


# Decorators used wrongly


@pytest.mark.parametrize(
    ('use', 'fault'),
    [
        (lambda: messaging.MessageHandler(print), '@MessageHandler needs a message type'),
        (lambda: messaging.RpcHandler(None), '@RpcHandler needs a message type'),
        (lambda: messaging.MessageHandlerFullBody('command', 7), 'must be text, not 7'),
        (
            lambda: messaging.MessageHandler('command')(7),
            '@MessageHandler decorates methods and Handler classes, not 7',
        ),
        (lambda: messaging.MessageHandler('command')(dict), 'dict must derive from messaging.Handler'),
        (lambda: messaging.MessageFilter(7), r'@MessageFilter needs a callable, as in .*, not 7'),
        (
            lambda: messaging.MessageFilter(messaging.MessageHandler('command')(lambda self, content: None)),
            '@MessageFilter needs a callable, as in ',
        ),
        (
            lambda: messaging.MessageHandler('command')(messaging.MessageFilter(lambda self, content: None)),
            '@MessageHandler decorates methods and Handler classes, not <postage.messaging.handlers.MessageFilter',
        ),
    ],
)
def test_a_decorator_used_wrongly_raises_at_once(use, fault):
    with pytest.raises(messaging.ConfigurationError, match=fault):
        use()


def test_a_handler_class_without_call_fails_its_messages(bench):
    class Unfinished(Processor):
        @messaging.RpcHandler('command', 'ask')
        class Ask(messaging.Handler):
            pass

    run(bench, Unfinished)
    reply = bench.producer().rpc_ask()
    assert content_of(reply)['value'] == 'NotImplementedError'
    assert 'must define call' in content_of(reply)['message']


def test_a_result_may_be_handled_as_any_message(bench):
    class Handling(Processor):
        @messaging.MessageHandler('result')
        def msg_result(self, content):
            self.seen.put(content['value'])

    processor = run(bench, Handling)
    bench.publish(result(5))
    assert processor.seen.next() == 5
