"""Attempts to connect follow each other with pauses that grow, until one link has lasted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika.exceptions
import pytest

from postage import errors
from postage.amqp import attempts as attempts_module
from postage.amqp.attempts import PAUSES, REFUSED_SECONDS, SHORT_LIFE, Attempts
from postage.settings import broker_settings
from support.loops import StepLoop


class Link:
    """What stands for a link, whose connecting a test plays."""

    made: list[Link] = []
    reason = None

    def __init__(self, _parameters: Any, **callbacks: Any) -> None:
        self.opened = lambda: callbacks['on_open_callback'](self)
        self.failed = lambda error: callbacks['on_open_error_callback'](self, error)
        self.is_direct = callbacks['is_direct']
        self.made.append(self)

    def add_on_connection_blocked_callback(self, callback: Callable[..., Any]) -> None: ...
    def add_on_connection_unblocked_callback(self, callback: Callable[..., Any]) -> None: ...
    def note_agreement(self) -> None: ...
    def watch_for_silence(self) -> None: ...
    def close(self) -> None: ...


class Setting:
    """Attempts on a loop that is taken step by step, with the clock of that.

    :ivar events: what the connection was told
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hosts: int = 1) -> None:
        self.loop: Any = StepLoop()
        self.events: list[Any] = []
        monkeypatch.setattr(attempts_module, 'Link', Link)
        monkeypatch.setattr(attempts_module, 'Services', lambda loop: loop)
        monkeypatch.setattr(attempts_module.time, 'monotonic', lambda: self.loop.now)
        monkeypatch.setattr(attempts_module._random, 'uniform', lambda _, longest: longest)
        monkeypatch.setattr(Link, 'made', [])
        monkeypatch.setenv('POSTAGE_HOST', ','.join(f'host-{number}' for number in range(hosts)))
        self.attempts = Attempts(
            broker_settings(),
            'publishing',
            True,
            self.loop,
            lambda link: self.events.append('open'),
            lambda link, error: self.events.append('lost'),
            lambda error: self.events.append(error),
        )

    def seconds_to_next(self) -> float:
        """How long it takes until the next attempt is made."""
        made, begin = len(Link.made), self.loop.now
        while len(Link.made) == made:
            self.loop.run(0.01)
            assert self.loop.now - begin < 60, 'there is none'
        return float(self.loop.now - begin)

    def live(self, seconds: float) -> None:
        """Have a link open, last so long and be lost, and attempts begin again."""
        Link.made[-1].opened()
        self.loop.run(seconds)
        self.attempts.begin()


REFUSED = pika.exceptions.AMQPConnectionError(ConnectionRefusedError(111, 'Connection refused'))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(monkeypatch)


def test_the_first_attempt_is_made_at_once_and_pauses_grow_to_their_ceiling(on: Setting) -> None:
    on.attempts.begin()
    assert on.seconds_to_next() == pytest.approx(0.0, abs=0.02)
    pauses = []
    for _ in range(len(PAUSES) + 2):
        Link.made[-1].failed(REFUSED)
        pauses.append(on.seconds_to_next())
    assert pauses == pytest.approx([*PAUSES, PAUSES[-1], PAUSES[-1]], abs=0.02)


def test_all_hosts_are_tried_before_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Setting(monkeypatch, hosts=3)
    on.attempts.begin()
    on.seconds_to_next()
    pauses = []
    for _ in range(6):
        Link.made[-1].failed(REFUSED)
        pauses.append(on.seconds_to_next())
    assert pauses == pytest.approx([0.0, 0.0, PAUSES[0], 0.0, 0.0, PAUSES[1]], abs=0.02)


def test_after_a_link_that_lasted_the_next_attempt_is_made_almost_at_once(on: Setting) -> None:
    on.attempts.begin()
    on.seconds_to_next()
    for _ in range(3):
        on.live(SHORT_LIFE + 1)
        assert on.seconds_to_next() == pytest.approx(PAUSES[0], abs=0.02)


def test_where_one_link_after_the_other_is_lost_as_soon_as_it_was_made_the_pauses_grow(on: Setting) -> None:
    on.attempts.begin()
    on.seconds_to_next()
    pauses = []
    for _ in range(len(PAUSES) + 1):
        on.live(SHORT_LIFE / 2)
        pauses.append(on.seconds_to_next())
    assert pauses == pytest.approx([*PAUSES[1:], PAUSES[-1], PAUSES[-1]], abs=0.02)
    on.live(SHORT_LIFE + 1)
    assert on.seconds_to_next() == pytest.approx(PAUSES[0], abs=0.02)


def test_after_the_end_no_attempt_is_made(on: Setting) -> None:
    on.attempts.begin()
    on.attempts.end()
    on.loop.run(60)
    assert Link.made == []


LOGIN_REFUSED, NO_VIRTUAL_HOST = (
    pika.exceptions.AMQPConnectionError(pika.exceptions.ConnectionClosedByBroker(code, text))
    for code, text in ((403, 'ACCESS_REFUSED - Login was refused'), (530, "NOT_ALLOWED - vhost 'shop' not found"))
)


@pytest.mark.parametrize('refused', [LOGIN_REFUSED, NO_VIRTUAL_HOST], ids=['login', 'virtual host'])
def test_a_broker_that_let_us_in_before_may_refuse_that_for_a_moment(on: Setting, refused: BaseException) -> None:
    on.attempts.begin()
    on.seconds_to_next()
    for _ in range(2):
        on.live(SHORT_LIFE + 1)
        began = on.loop.now + on.seconds_to_next()
        while on.loop.now - began < REFUSED_SECONDS - PAUSES[-1] / 2:
            Link.made[-1].failed(refused)
            on.seconds_to_next()
    assert on.events == ['open', 'open']
    on.live(SHORT_LIFE + 1)
    on.seconds_to_next()
    Link.made[-1].failed(refused)
    on.seconds_to_next()
    on.loop.run(REFUSED_SECONDS)
    Link.made[-1].failed(refused)
    assert isinstance(on.events[-1], (errors.AuthenticationFailed, errors.VirtualHostRefused))


def test_a_refusal_for_good_is_told_and_no_attempt_follows(on: Setting) -> None:
    on.attempts.begin()
    on.seconds_to_next()
    Link.made[-1].failed(LOGIN_REFUSED)
    on.loop.run(60)
    assert [type(event) for event in on.events] == [errors.AuthenticationFailed]
    assert len(Link.made) == 1


def test_what_failed_last_is_told_in_a_few_words(on: Setting) -> None:
    on.attempts.begin()
    on.seconds_to_next()
    Link.made[-1].failed(REFUSED)
    assert 'Connection refused' in on.attempts.last_failure
