"""``postage top`` shows the components that run, sorted, and its keys pause them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.screen import Screen

from postage import messaging
from postage.cli.main import postage as group
from postage.cli.operate import top
from postage.cli.operate.asking import Answer, Expected, ask, operator
from support.messaging import TIMEOUT, Bench, Echo, EchoExchange, EchoProducer, eventually
from support.proxy import Proxy


class Shop(Echo):
    control = True

    def __init__(self, name: str) -> None:
        self.ready = threading.Event()
        super().__init__([(EchoExchange, [(name, name)])], messaging.Fingerprint(name, host='here', pid=7))

    def start_consuming(self) -> None:
        super().start_consuming()
        self.ready.set()


@pytest.fixture
def shops(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Shop]:
    """Two components of one process, the second of which has handled more."""
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '60')
    shops = [Shop('a'), Shop('b')]
    bench.run(*shops)
    assert all(shop.ready.wait(TIMEOUT) for shop in shops)
    producer = bench.producer(type('B', (EchoProducer,), {'eks': [(EchoExchange, 'b')]}))
    for number in range(3):
        assert producer.rpc_echo(number)
    return shops


def run(*words: str) -> Result:
    return CliRunner().invoke(group, ['top', *words])


@pytest.mark.parametrize(('order', 'first'), [('name', 'a'), ('handled', 'b'), ('rate', 'b'), ('p99', 'b')])
def test_it_shows_who_runs_in_some_order(shops: list[Shop], order: str, first: str) -> None:
    result = run('--count', '1', '--interval', '1', '--sort', order)
    assert result.exit_code == 0, result.output
    head, _, titles, *lines = result.output.splitlines()
    assert head.startswith(f'2 components, by {order}')
    assert 'last error' in titles
    assert [line.split()[0] for line in (lines[0].removeprefix('>'),)] == [first]


def test_it_looks_again_and_again(shops: list[Shop]) -> None:
    assert run('--count', '2', '--interval', '0.5', 'a').output.count('1 components') == 2


def test_it_prints_json(shops: list[Shop]) -> None:
    result = run('--count', '2', '--interval', '0.5', '--sort', 'handled', '--json')
    looks = [json.loads(line) for line in result.output.splitlines()]
    assert [[stats['fingerprint']['name'] for stats in look] for look in looks] == [['b', 'a']] * 2


def test_nobody_there_is_a_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '60')
    assert run('--count', '1', '--interval', '0.1').exit_code == 1


@pytest.fixture
def press(shops: list[Shop]) -> Any:
    """A function that presses keys; what is shown is in ``view``."""
    with operator(TIMEOUT) as producer:
        view = top.View('name')
        view.update(ask(producer, 'stats', '', TIMEOUT, Expected(2)))

        def press(*keys: str) -> str:
            for key in keys:
                top.act(key, view, producer, TIMEOUT)
            console = Console(width=200)
            with console.capture() as captured:
                console.print(view)
            return str(captured.get())

        yield press


def test_keys_pause_and_resume_the_one_that_is_chosen(shops: list[Shop], press: Callable[..., str]) -> None:
    first, second = shops
    assert 'b 7@here: paused' in press('j', 'p')
    assert (first.is_paused, second.is_paused) == (False, True)
    assert 'b 7@here: resumed' in press('r')
    assert not second.is_paused


def test_the_one_that_is_chosen_stays_so_when_it_moves(press: Callable[..., str]) -> None:
    assert '> a' in ' '.join(press('k').split())
    shown = press('s', 's', 's', 's')  # by what was handled
    assert 'by handled' in shown
    assert '> a' in ' '.join(shown.split())


@pytest.mark.parametrize(
    ('typed', 'keys'),
    [
        ('jjp', ['j', 'j', 'p']),
        ('\x1b[B\x1b[Ap', ['j', 'k', 'p']),
        ('\x1bOBq', ['j', 'q']),
        ('\x1b[3~\x1b[1;5Cs', ['s']),
        ('\x1b', []),
    ],
)
def test_keys_are_told_apart_however_fast_they_come(typed: str, keys: list[str]) -> None:
    assert top.keys_of(typed) == keys


def test_a_broker_that_goes_away_is_said_and_those_that_come_back_are_shown(
    bench: Bench, shops: list[Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = top.View('name')
    with Proxy.before(bench.broker) as proxied:
        monkeypatch.setenv('POSTAGE_URL', proxied.url(bench.broker.url))
        with operator(0.5) as producer:
            assert len(top.look(view, producer, '', 0.5)) == 2
            proxied.refuse()
            proxied.cut()
            eventually(lambda: top.look(view, producer, '', 0.5) == [])
            assert 'the broker has been away for' in shown(view, 200)
            proxied.accept()
            eventually(lambda: len(top.look(view, producer, '', 0.5)) == 2)
    assert 'away' not in shown(view, 200)


def shown(view: top.View, width: int, height: int | None = None) -> str:
    """What is to be seen of it on a terminal."""
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view if height is None else Screen(view))
    return str(captured.get())


def stats_of(number: int) -> Answer:
    messages = {'last_error': {'exception': 'KeyError', 'message': 'x' * 70}, 'in_hand': 0, 'rate': 0, 'p99': 0.5}
    stats = {'messages': messages, 'version': '1.2.3', 'uptime': 100, 'paused': False, 'connections': []}
    return Answer({'name': f'shop-{number:02}', 'host': 'here', 'pid': number}, stats, None, 0.0)


@pytest.mark.parametrize('width', [60, 80, 100, 120])
def test_each_component_has_one_line_however_narrow_the_terminal_is(width: int) -> None:
    view = top.View('name')
    view.update([stats_of(number) for number in range(3)])
    lines = shown(view, width).splitlines()
    assert [line.removeprefix('>').split()[0] for line in lines[-3:]] == ['shop-00', 'shop-01', 'shop-02']
    for title in ('name', 'pid', 'state', 'in hand'):
        assert title in lines[-4]


def test_the_one_that_is_chosen_is_on_the_screen() -> None:
    view = top.View('name')
    view.update([stats_of(number) for number in range(50)])
    assert 'shop-00' in shown(view, 80, 10)
    view.move(49)
    lines = shown(view, 80, 10).splitlines()
    assert len(lines) == 10
    assert lines[-1].split()[:2] == ['>', 'shop-49']


def test_a_key_ends_it(press: Callable[..., str]) -> None:
    with pytest.raises(top._End):
        press('q')
