"""Components answer questions about themselves, and obey commands, beside their handlers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from postage import __version__, errors, messaging
from postage.generic_application import GenericApplication
from postage.messaging.addresses import ControlExchange, control_key
from support.messaging import DEAD_LETTERING, EQK, GUARDED_EQK, TIMEOUT, Bench, Echo, EchoExchange, Seen, eventually


class Operator(messaging.GenericProducer):
    eks = [(ControlExchange, 'all')]
    rpc_timeout = TIMEOUT
    max_retry = 0


class Shop(Echo):
    """Echoes, waits and fails on demand."""

    control = True
    version = '3.1'

    def __init__(self, eqk: Any = EQK, name: str = 'shop', **kwds: Any) -> None:
        self.go = threading.Event()
        self.answers: dict[str, Future[Any]] = {}
        super().__init__(eqk, messaging.Fingerprint(name, host='here', pid=7), **kwds)

    @messaging.MessageHandler('command', 'busy')
    def msg_busy(self, content: dict[str, Any]) -> None:
        """Compute until told otherwise.

        It never waits, so no other thread gets more than the interpreter gives it.
        """
        self.seen.put('busy')
        while not self.go.is_set():
            pass

    @messaging.MessageHandler('command', 'wait')
    def msg_wait(self, content: dict[str, Any]) -> Any:
        self.seen.put('waits')
        future = self.answers.setdefault('wait', Future())
        yield future
        self.seen.put('waited')

    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content: dict[str, Any]) -> None:
        raise LookupError('no such\x1b[31m thing')

    @messaging.MessageHandler('command', 'retry')
    @messaging.Retry(OSError, delays=[60])
    def msg_retry(self, content: dict[str, Any]) -> None:
        raise OSError('busy')


@pytest.fixture
def operator(bench: Bench) -> Any:
    return bench.producer(Operator)


def value(reply: Any) -> Any:
    content = reply.body['content']
    assert content['type'] == 'success', content
    return content['value']


def ask(operator: Any, question: str, address: str = 'shop') -> Any:
    return value(getattr(operator, f'rpc_{question}')(_key=control_key(address)))


def refusal(operator: Any, question: str, address: str = 'shop') -> str:
    reply = getattr(operator, f'rpc_{question}')(_key=control_key(address))
    assert not reply
    return str(reply.body['content']['message'])


# Questions


def test_a_component_answers_a_ping_with_its_fingerprint(bench: Bench, operator: Any) -> None:
    processor = Shop()
    running(bench, processor)
    assert ask(operator, 'ping') == processor.fingerprint


@pytest.mark.parametrize('address', ['', 'shop', '@here', 'shop@here', '7@here', 'shop:7@here'])
def test_a_component_is_addressed_by_name_host_and_process(bench: Bench, operator: Any, address: str) -> None:
    running(bench, Shop())
    assert ask(operator, 'ping', address)['name'] == 'shop'


def running(bench: Bench, processor: Any) -> Any:
    """Run it, and wait until it consumes, which is when it answers."""
    ready = threading.Event()
    begin = processor.start_consuming

    def start_consuming() -> None:
        begin()
        ready.set()

    processor.start_consuming = start_consuming
    run = bench.run(processor)
    assert ready.wait(TIMEOUT)
    return run


@pytest.mark.parametrize('name', ['a.b', 'a*b', '50%', 'a b', 'größe'])
def test_a_name_may_have_what_is_special_to_an_exchange(bench: Bench, operator: Any, name: str) -> None:
    running(bench, Shop(name=name))
    assert ask(operator, 'ping', name)['name'] == name
    assert ask(operator, 'ping', f'{name}@here')['name'] == name


@pytest.mark.parametrize('address', ['@', 'a@', 'a#', '#b', 'a@b#c', '#'])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(errors.ConfigurationError, match='an address is name, @host'):
        control_key(address)


def test_info_tells_queues_handlers_and_what_becomes_of_failures(bench: Bench, operator: Any) -> None:
    bench.dead()
    running(bench, Shop(GUARDED_EQK))
    info = ask(operator, 'info')
    assert info['fingerprint']['name'] == 'shop'
    assert (info['version'], info['postage']) == ('3.1', __version__)
    (queue,) = info['queues']
    assert queue['name'] == 'echo-queue'
    assert queue['keys'] == [{'exchange': 'echo-exchange', 'key': 'echo-rk'}]
    assert queue['arguments'] == DEAD_LETTERING['arguments']
    handlers = {handler['handler']: handler for handler in info['handlers']}
    busy, retry = handlers['Shop.msg_busy'], handlers['Shop.msg_retry']
    assert (busy['category'], busy['type'], busy['name']) == ('message', 'command', 'busy')
    assert busy['doc'] == 'Compute until told otherwise.'
    assert retry['retries'] == [{'exceptions': ['OSError'], 'delays': [60.0], 'jitter': 0.2}]
    assert handlers['Shop.msg_quit']['is_built_in']
    assert handlers['Shop.msg_wait']['runs_as'] == 'generator'


def test_stats_count_what_became_of_the_messages_of_each_handler(bench: Bench, operator: Any) -> None:
    bench.dead()
    shop = Shop(GUARDED_EQK)
    running(bench, shop)
    producer = bench.producer()
    for _ in range(3):
        producer.message_echo('hello')
    producer.message_fail()
    producer.message_retry()
    producer.message_nobody()
    assert producer.rpc_echo('the last')
    stats = ask(operator, 'stats')
    echo, fail, retry = (stats['handlers'][f'Shop.msg_{name}'] for name in ('echo', 'fail', 'retry'))
    assert (echo['handled'], echo['failed'], echo['in_hand'], echo['last_error']) == (3, 0, 0, None)
    assert 0 < echo['p50'] <= echo['p99'] < TIMEOUT
    assert (fail['handled'], fail['failed'], fail['retried'], fail['dead']) == (0, 1, 0, 1)
    assert fail['last_error']['exception'] == 'LookupError'
    assert fail['last_error']['message'] == r'no such\x1b[31m thing'
    assert (retry['failed'], retry['retried'], retry['dead']) == (1, 1, 0)
    messages = stats['messages']
    assert (messages['received'], messages['handled'], messages['unhandled']) == (7, 4, 1)
    assert (messages['retried'], messages['dead'], messages['dead_by_reason']) == (1, 1, {'exception': 1})
    assert messages['last_error'] in (fail['last_error'], retry['last_error'])
    assert messages['rate'] > 0
    assert 0 <= stats['uptime'] < 60
    assert not stats['paused']


def test_stats_tell_how_the_connections_are(bench: Bench, operator: Any) -> None:
    shop = Shop()
    running(bench, shop)
    connections = {connection['role']: connection for connection in ask(operator, 'stats')['connections']}
    assert set(connections) == {'consuming', 'publishing'}
    before = connections['consuming']
    assert (before['is_open'], before['reconnects'], before['blocked_since']) == (True, 0, None)
    assert before['up_since'] <= time.time()
    bench.close_all_connections()
    eventually(lambda: all(each.standing.reconnects and each.is_open for each in shop.consumer.connections))
    after = ask(operator, 'stats')['connections'][0]
    assert (after['is_open'], after['reconnects']) == (True, 1)
    assert after['up_since'] >= before['up_since']


def test_a_handler_that_computes_for_ever_delays_no_answer(bench: Bench, operator: Any) -> None:
    shop = Shop()
    running(bench, shop)
    bench.producer().message_busy()
    assert shop.seen.next() == 'busy'
    try:
        began = time.monotonic()
        stats = ask(operator, 'stats')
        assert time.monotonic() - began < 5  # of a loaded machine
        assert stats['messages']['in_hand'] == stats['handlers']['Shop.msg_busy']['in_hand'] == 1
        assert stats['messages']['oldest_in_hand'] > 0
        found = ask(operator, 'stacks')
        (busy,) = (each for each in found['threads'] if each['thread'] == 'scheduler-of-a-test')
        assert 'in msg_busy' in busy['stack'][-1] or 'in is_set' in busy['stack'][-1], busy['stack']
    finally:
        shop.go.set()


def test_stacks_tell_where_a_microthread_waits(bench: Bench, operator: Any) -> None:
    shop = Shop()
    running(bench, shop)
    bench.producer().message_wait()
    assert shop.seen.next() == 'waits'

    def waiting() -> Any:
        found = ask(operator, 'stacks')['microthreads']
        handling = [each for each in found if each['microthread'] == 'Handling Shop.msg_wait']
        return handling and handling[0]['state'] == 'waiting' and (found, handling[0])

    found, handling = eventually(waiting)
    assert handling['waits_for'] == 'a future'
    assert handling['stack'][-1].endswith('in msg_wait: yield future')
    (processor,) = (each for each in found if each['microthread'] == 'Shop')
    assert processor['waits_for'] == 'a signal'
    shop.answers['wait'].set_result(None)
    assert shop.seen.next() == 'waited'


def test_what_nobody_answers_is_told(bench: Bench, operator: Any) -> None:
    running(bench, Shop())
    assert 'ping, info, stats' in refusal(operator, 'nonsense')


def test_what_cannot_be_read_does_not_end_the_answers(bench: Bench, operator: Any) -> None:
    running(bench, Shop())
    bench.publish(b'\xff', control_key('shop'), ControlExchange.name)
    bench.publish({'type': 'command'}, control_key('shop'), ControlExchange.name)
    assert ask(operator, 'ping')
    assert bench.log.expect('nothing that can be understood')


# Commands


def test_a_paused_component_takes_nothing_and_goes_on_when_it_is_resumed(bench: Bench, operator: Any) -> None:
    shop = Shop()
    running(bench, shop)
    assert ask(operator, 'pause') == {'state': 'paused', 'in_hand': 0}
    assert ask(operator, 'stats')['paused']
    assert bench.consumers('echo-queue') == 0
    bench.producer().message_echo('while it was paused')
    bench.producer().flush()
    eventually(lambda: bench.count('echo-queue') == 1)
    assert shop.seen.empty()
    assert ask(operator, 'resume') == {'state': 'running', 'in_hand': 0}
    assert shop.seen.next() == 'while it was paused'


def test_what_is_in_hand_is_finished_while_it_is_paused(bench: Bench) -> None:
    shop = Shop()
    run = running(bench, shop)
    bench.producer().message_wait()
    assert shop.seen.next() == 'waits'
    shop.pause()
    shop.answers['wait'].set_result(None)
    assert shop.seen.next() == 'waited'
    run.stop()
    assert bench.count('echo-queue') == 0


def test_a_pause_outlives_the_connection(bench: Bench) -> None:
    shop = Shop()
    running(bench, shop)
    shop.pause()
    bench.close_all_connections()
    eventually(lambda: shop.consumer.conn_broker.standing.reconnects and shop.consumer.conn_broker.is_open)
    assert bench.consumers('echo-queue') == 0
    shop.resume()
    assert bench.consumers('echo-queue') == 1


def test_a_processor_that_is_paused_before_it_runs_begins_paused(bench: Bench) -> None:
    shop = Shop()
    shop.pause()
    running(bench, shop)
    assert bench.consumers('echo-queue') == 0
    shop.resume()
    bench.producer().message_echo('hello')
    assert shop.seen.next() == 'hello'


def test_a_queue_that_deletes_itself_outlives_a_pause(bench: Bench) -> None:
    shop = Shop([(EchoExchange, [({'name': 'passing', 'flags': {'auto_delete': True}}, 'echo-rk')])])
    running(bench, shop)
    shop.pause()
    bench.producer().message_echo('kept')
    bench.producer().flush()
    assert shop.seen.empty()
    shop.resume()
    assert shop.seen.next() == 'kept'


@pytest.mark.parametrize('where', ['another thread', 'a handler'])
def test_to_stop_the_consumer_of_a_processor_pauses_it(bench: Bench, where: str) -> None:
    class Stopping(Shop):
        @messaging.MessageHandler('command', 'stop')
        def msg_stop(self, content: dict[str, Any]) -> None:
            self.consumer.stop_consuming()
            self.seen.put('stopped')

    shop = Stopping()
    running(bench, shop)
    if where == 'a handler':
        bench.producer().message_stop()
        assert shop.seen.next() == 'stopped'
    else:
        shop.consumer.stop_consuming()
    assert shop.is_paused
    assert bench.consumers('echo-queue') == 0
    shop.resume()
    bench.producer().message_echo('hello')
    assert shop.seen.next() == 'hello'


def test_a_component_that_is_drained_finishes_what_is_in_hand_and_ends(bench: Bench, operator: Any) -> None:
    shop = Shop()
    run = running(bench, shop)
    bench.producer().message_wait()
    assert shop.seen.next() == 'waits'
    assert ask(operator, 'drain') == {'state': 'draining', 'in_hand': 1}
    eventually(lambda: bench.consumers('echo-queue') == 0)
    shop.answers['wait'].set_result(None)
    run.wait()
    assert shop.seen.next() == 'waited'
    assert bench.count('echo-queue') == 0


def test_quit_ends_the_loop_by_the_handler_of_the_processor(bench: Bench, operator: Any) -> None:
    class Tidy(Shop):
        @messaging.MessageHandler('command', 'quit')
        def msg_quit(self, content: dict[str, Any]) -> None:
            self.seen.put('tidied up')
            super().msg_quit(content)

    shop = Tidy()
    run = running(bench, shop)
    assert ask(operator, 'quit')['state'] == 'quitting'
    run.wait()
    assert shop.seen.next() == 'tidied up'


def test_a_processor_without_a_handler_for_quit_says_so(bench: Bench, operator: Any) -> None:
    running(bench, type('Lasting', (Shop,), {'msg_quit': None})())
    assert "takes no command 'quit'" in refusal(operator, 'quit')


def test_restart_runs_the_program_again(bench: Bench, operator: Any) -> None:
    restarted = Seen()
    shop = type('Again', (Shop,), {'restart': lambda self: restarted.put(threading.current_thread().name)})()
    running(bench, shop)
    assert ask(operator, 'restart')['state'] == 'restarting'
    assert restarted.next() == 'scheduler-of-a-test'


def test_a_command_may_be_a_message_without_an_answer(bench: Bench, operator: Any) -> None:
    shop = Shop()
    running(bench, shop)
    operator.message_pause(_key=control_key('shop'))
    eventually(lambda: shop.is_paused)


@pytest.mark.parametrize('command', ['stacks', 'pause', 'resume', 'drain', 'quit', 'restart'])
def test_commands_are_obeyed_only_where_remote_commands_says_so(bench: Bench, operator: Any, command: str) -> None:
    shop = type('Deaf', (Shop,), {'remote_commands': False})()
    running(bench, shop)
    assert 'not authorised' in refusal(operator, command)
    assert not shop.is_paused
    assert ask(operator, 'ping')
    assert ask(operator, 'stats')


def test_remote_commands_may_decide_by_the_delivery(bench: Bench, operator: Any) -> None:
    keys = Seen()

    def decide(self: Any, delivery: Any) -> bool:
        keys.put((delivery.exchange, delivery.routing_key))
        return bool(delivery.routing_key == 'name.shop')

    shop = type('Choosy', (Shop,), {'remote_commands': decide})()
    running(bench, shop)
    assert ask(operator, 'pause')['state'] == 'paused'
    assert 'not authorised' in refusal(operator, 'resume', '@here')
    assert keys.take(2) == [('postage-control', 'name.shop'), ('postage-control', 'host.here')]


# Life


def test_control_is_off_unless_it_is_switched_on(bench: Bench) -> None:
    before = set(threading.enumerate())
    running(bench, Echo())
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == 'postage-control']
    assert not [queue for queue in bench.broker.queues() if queue.startswith('postage-control')]


def test_nothing_is_left_when_a_processor_ends_while_another_goes_on(bench: Bench, operator: Any) -> None:
    running(bench, Shop([(EchoExchange, [('other', 'other')])], 'other'))
    run = running(bench, Shop())
    run.stop()
    eventually(lambda: len([name for name in bench.broker.queues() if name.startswith('postage-control')]) == 1)
    assert ask(operator, 'ping', '')['name'] == 'other'
    assert len([thread for thread in threading.enumerate() if thread.name == 'postage-control']) == 1


def test_a_generic_application_answers_by_default_and_by_its_groups(bench: Bench, operator: Any) -> None:
    application = GenericApplication(messaging.Fingerprint('monitor', host='a', pid=1), groups=['odd'])
    running(bench, application)
    assert ask(operator, 'ping', 'monitor#odd')['name'] == 'monitor'
    application.join_group('even')
    assert ask(operator, 'info', 'monitor#even')['groups'] == ['odd', 'even']
    application.leave_group('odd')
    odd = operator.rpc_future_ping(_key=control_key('monitor#odd'), _timeout=0.2)
    assert not odd.result(TIMEOUT)


def test_a_broker_that_refuses_the_exchange_keeps_no_component_from_working(bench: Bench) -> None:
    bench.bare.exchange_declare(ControlExchange.name, 'fanout')
    shop = Shop()
    running(bench, shop)
    bench.producer().message_echo('works')
    assert shop.seen.next() == 'works'
    bench.log.expect('answers no questions about itself')
    bench.bare.exchange_delete(ControlExchange.name)


def test_without_a_broker_there_is_nothing_to_answer() -> None:
    with Shop.test_client() as client:
        assert client.send(messaging.RpcCommand('echo', 1)).body['content']['value'] == 1


# What hooks see


class Watched(Shop):
    """Tells what its hooks see."""

    def before_handling(self, handling: Any) -> None:
        assert (handling.outcome, handling.exception, handling.duration) == (None, None, None)
        if handling.body['name'] == 'barred':
            raise PermissionError('barred')

    def after_handling(self, handling: Any) -> None:
        name = type(handling.exception).__name__ if handling.exception else None
        self.seen.put((handling.body['name'], handling.outcome, name, handling.attempt))
        assert handling.duration >= 0

    @messaging.MessageHandler('command', 'work')
    def msg_work(self, content: dict[str, Any]) -> None:
        pass

    @messaging.MessageHandler('command', 'drop')
    def msg_drop(self, content: dict[str, Any]) -> None:
        raise messaging.FilterError('not this one')

    @messaging.MessageHandler('command', 'reject')
    def msg_reject(self, content: dict[str, Any]) -> None:
        raise messaging.RejectMessage

    @messaging.MessageHandler('command', 'again')
    @messaging.Retry(OSError, delays=[0.05])
    def msg_again(self, content: dict[str, Any]) -> None:
        raise OSError('busy')

    @messaging.MessageHandler('command', 'generate')
    def msg_generate(self, content: dict[str, Any]) -> Any:
        yield
        raise LookupError('late')


@pytest.fixture
def watched(bench: Bench) -> Callable[[str], Seen]:
    bench.dead()
    processor = Watched(GUARDED_EQK)
    running(bench, processor)
    producer = bench.producer()

    def send(name: str) -> Seen:
        getattr(producer, f'message_{name}')()
        return processor.seen

    return send


@pytest.mark.parametrize(
    ('name', 'outcome', 'exception'),
    [
        ('work', 'handled', None),
        ('missing', 'unhandled', None),
        ('drop', 'dropped', 'FilterError'),
        ('reject', 'rejected', 'RejectMessage'),
        ('fail', 'dead', 'LookupError'),
        ('generate', 'dead', 'LookupError'),
        ('barred', 'dead', 'PermissionError'),
    ],
)
def test_hooks_see_what_became_of_a_message(watched: Any, name: str, outcome: str, exception: str | None) -> None:
    assert watched(name).next() == (name, outcome, exception, 1)


@pytest.mark.parametrize(
    ('name', 'hook', 'fault'),
    [
        ('before_handling', lambda self: None, r'Wrong\.before_handling\(\) is called with handling'),
        ('after_handling', lambda self, body, more: None, r'after_handling\(body, more\) is called with handling'),
        ('before_processing', lambda self, more: None, r'before_processing\(more\) is called with nothing'),
        ('after_handling', asyncio.sleep, 'after_handling must be a plain function'),
        ('after_processing', lambda self: (yield), 'after_processing must be a plain function'),
    ],
)
def test_a_hook_that_cannot_be_called_is_told_when_the_processor_is_made(name: str, hook: Any, fault: str) -> None:
    wrong = type('Wrong', (messaging.MessageProcessor,), {name: hook})
    with pytest.raises(messaging.ConfigurationError, match=fault):
        wrong.test_client().__enter__()


def test_hooks_see_which_attempt_it_was(watched: Any) -> None:
    seen = watched('again')
    assert seen.take(2) == [('again', 'retried', 'OSError', 1), ('again', 'dead', 'OSError', 2)]
