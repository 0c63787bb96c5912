"""Who may command a processor is its own decision, and each command is logged."""

from __future__ import annotations

from typing import Any

import pytest

from postage import messaging
from postage.generic_application import GenericApplication
from postage.messaging.commands import RESTARTS, pause_before_restart
from support.messaging import EQK, TIMEOUT, Bench, Echo, EchoExchange, command, echo_producer


def decided(decision: Any) -> type[Echo]:
    return type('Decided', (Echo,), {'remote_commands': decision})


@pytest.mark.parametrize('name', ['quit', 'restart'])
def test_a_processor_that_takes_no_commands_goes_on(bench: Bench, name: str) -> None:
    processor = decided(False)(EQK)
    bench.run(processor)
    bench.publish(command(name, fingerprint={'name': 'stranger\x1b'}), user_id='guest')
    bench.publish(command(parameters='after'))
    assert processor.seen.next() == 'after'
    line = bench.log.expect('WARNING', f'command {name!r} is not authorised')
    assert "'name': 'stranger\\x1b'" in line
    assert "user_id 'guest', exchange 'echo-exchange'" in line


def test_a_processor_obeys_by_default_and_says_so(bench: Bench) -> None:
    running = bench.run(Echo(EQK))
    bench.publish(command('quit', fingerprint={'name': 'operator'}))
    running.wait()
    bench.log.expect('INFO', "command 'quit' is authorised", 'operator', 'user_id None')


def test_a_method_decides_from_the_delivery(bench: Bench) -> None:
    def decide(self: Any, delivery: Any) -> bool:
        return bool(delivery.properties.user_id == 'guest')

    processor = decided(decide)(EQK)
    running = bench.run(processor)
    bench.publish(command('quit'))
    bench.publish(command(parameters='after'))
    assert processor.seen.next() == 'after'
    bench.publish(command('quit'), user_id='guest')
    running.wait()


async def coroutine(self: Any, delivery: Any) -> bool:
    return True


@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited')
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('decision', [lambda self, delivery: 'yes', lambda self, delivery: 1, coroutine])
def test_nothing_but_true_authorises(bench: Bench, decision: Any) -> None:
    processor = decided(decision)(EQK)
    bench.run(processor)
    bench.publish(command('quit'))
    bench.publish(command(parameters='after'))
    assert processor.seen.next() == 'after'


def test_a_decision_that_raises_authorises_nothing(bench: Bench) -> None:
    def decide(self: Any, delivery: Any) -> bool:
        raise ValueError('undecided')

    processor = decided(decide)(EQK)
    bench.run(processor)
    bench.publish(command('quit'))
    bench.publish(command(parameters='after'))
    assert processor.seen.next() == 'after'
    bench.log.expect('ERROR', 'msg_quit raised')
    bench.log.expect('WARNING', "command 'quit' is not authorised: it came from fingerprint")


@pytest.mark.parametrize('decision', [None, 0, 'yes'])
def test_a_decision_of_another_kind_is_refused_before_anything_is_connected(decision: Any) -> None:
    with pytest.raises(messaging.ConfigurationError, match='remote_commands must be True, False or a method'):
        decided(decision)(EQK)


def test_the_commands_about_groups_obey_it_too(bench: Bench) -> None:
    class Application(GenericApplication):
        remote_commands = False
        exchange_class = EchoExchange

    application = Application(messaging.Fingerprint('app', pid='1', host='h'), groups=['old'])
    bench.run(application)
    producer = bench.producer(echo_producer('app'))
    producer.message_join_group({'group_name': 'new'}).wait(TIMEOUT)
    producer.message_leave_group({'group_name': 'old'}).wait(TIMEOUT)
    bench.log.expect('WARNING', "command 'leave_group' is not authorised")
    assert application.groups == ['old']


def test_a_restart_loop_is_slowed_down() -> None:
    environ: dict[str, str] = {}
    now, pauses = 1000.0, []
    for _ in range(12):
        pauses.append(pause_before_restart(environ, now))
        now += pauses[-1] + 0.5
    assert pauses == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pause_before_restart(environ, now + 1000) == 0
    for broken in ('x', '1', '1 x', '-5 nan', '9' * 99 + ' 0'):
        assert pause_before_restart({RESTARTS: broken}, now) == 0
