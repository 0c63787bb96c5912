"""What the tests of recovery share: benches, applications with made-up places, and load that carries on by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from postage import messaging
from postage.generic_application import GenericApplication, GenericApplicationExchange
from support.messaging import TIMEOUT, Bench, Echo, LogBook, Seen, eventually


def let_go(bench: Bench) -> None:
    """Close the bench's own bare connection, which would not survive what the test has in mind; it is made anew."""
    bench._bare_end.close()
    bench._bare = None


def story(log: LogBook) -> list[str]:
    """Return what somebody reads who looks at warnings and errors only."""
    told = [line for line in list(log.lines) if not line.startswith(('DEBUG', 'INFO'))]
    return [line for line in told if ' postage.broker' not in line]  # the embedded broker's own


def await_reconnect(log: LogBook, times: int = 1) -> None:
    """Wait until both connections, the one that publishes and the one that consumes, have come back so many times."""
    for role in ('publishing', 'consuming'):
        eventually(lambda role=role: len(log.find('connected to', 'again', f'({role})')) >= times)


class Load:
    """Messages and RPCs, one after the other, from threads of their own to an :class:`Echo`.

    :ivar sent: what was published, by number, with the receipt of each
    :ivar answers: how many RPCs have been answered
    """

    def __init__(self, bench: Bench, echo: Echo) -> None:
        self.sent: dict[int, Any] = {}
        self.answers = 0
        self.handled: set[int] = set()
        self._failures: list[BaseException] = []
        self._echo = echo
        self._producer = bench.producer()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f'load-{work.__name__}', daemon=True)
            for work in (self._publish, self._ask)
        ]
        for thread in self._threads:
            thread.start()
        bench._end.callback(self._stop.set)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            while not self._stop.wait(0.002):
                work()
        except BaseException as failure:
            self._failures.append(failure)

    def _publish(self) -> None:
        number = len(self.sent)
        self.sent[number] = self._producer.message_echo(number)

    def _ask(self) -> None:
        # Patient enough for a broker that takes a while to come up again.
        answer = self._producer.rpc_echo(self.answers, _timeout=2, _max_retry=20)
        assert answer.body['content']['value'] == self.answers, answer
        self.answers += 1

    def await_progress(self) -> None:
        """Wait until messages that are sent from now on are handled, and RPCs answered."""
        number, answers = len(self.sent), self.answers
        self._collect_until(lambda: max(self.handled, default=-1) >= number and self.answers > answers + 1)

    def end(self) -> None:
        """Stop sending, and wait until every message is confirmed and handled."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), f'{thread.name} hangs'
        self._producer.flush(TIMEOUT)
        assert all(receipt.confirmed for receipt in self.sent.values())
        self._collect_until(lambda: self.handled.issuperset(self.sent))

    def _collect_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 2 * TIMEOUT
        while not condition():
            assert not self._failures, self._failures
            missing = sorted(set(self.sent) - self.handled)
            assert time.monotonic() < deadline, f'{self.answers} answers, and not handled: {missing[:10]}'
            self.handled.add(self._echo.seen.next())
        assert not self._failures, self._failures


# Generic applications


class Resident(GenericApplication):
    """An application that notes what it is told, and where it lives.

    :ivar seen: for its notes: pairs of its ``uid`` and what it got
    """

    def __init__(self, name: str, pid: int, host: str, groups: Any = None, seen: Seen | None = None) -> None:
        self.seen = Seen() if seen is None else seen
        super().__init__(messaging.Fingerprint(name, 'test', pid=str(pid), host=host), groups=groups)

    @messaging.MessageHandler('command', 'say')
    def msg_say(self, content: dict[str, Any]) -> None:
        self.seen.put((self.uid, content['parameters']))


class Control(messaging.GenericProducer):
    """Speaks to applications; ``_key`` says to which."""

    eks = [(GenericApplicationExchange, 'nobody')]
    rpc_timeout = TIMEOUT
    max_retry = 0


class Town:
    """Three applications named ``monitor`` on two hosts, and one of another name on the first host.

    ========  ==========  ========  ==================
    uid       name        host      groups
    ========  ==========  ========  ==================
    ``1@a``   monitor     a         odd
    ``2@a``   monitor     a
    ``3@b``   monitor     b         odd
    ``4@a``   other       a         odd
    ========  ==========  ========  ==================
    """

    def __init__(self, bench: Bench) -> None:
        self.seen = Seen()
        self.residents = [
            Resident('monitor', 1, 'a', ['odd'], self.seen),
            Resident('monitor', 2, 'a', None, self.seen),
            Resident('monitor', 3, 'b', ['odd'], self.seen),
            Resident('other', 4, 'a', ['odd'], self.seen),
        ]
        self.running = bench.run(*self.residents)
        self.control = bench.producer(Control)
        self.await_all()

    def await_all(self) -> None:
        """Wait until everybody consumes from all queues."""
        for resident in self.residents:
            assert self.control.rpc_ping(_key=resident.uid)

    def reached(self, key: str, times: int = 1, at_least: int = 1) -> list[str]:
        """Send with this key, and return the ``uid`` of all whom that reached, sorted.

        :param times: how often to send
        :param at_least: how many notes there will be; it matters for queues that several share
        """
        for _ in range(times):
            self.control.message_say('message', _key=key)
        self.control.flush(TIMEOUT)
        notes: list[str] = []
        # Each reads its own queue in order, so behind the roll call there is nothing left in it.
        missing = {resident.uid for resident in self.residents}
        for uid in missing:
            self.control.message_say('roll call', _key=uid)
        while missing or len(notes) < at_least:
            uid, text = self.seen.next()
            if text == 'roll call':
                missing.remove(uid)
            else:
                notes.append(uid)
        return sorted(notes)

    def reached_in_turn(self, key: str) -> list[str]:
        """Send with a round robin key, again and again, and return the ``uid`` of all whom that reached, sorted."""
        reached = set()
        for _ in range(5 * len(self.residents)):
            self.control.message_say('message', _key=key)
            uid, _ = self.seen.next()
            reached.add(uid)
        return sorted(reached)

    def order(self, uid: str, command: str, **parameters: Any) -> None:
        """Send one of them a command, and wait until it has been handled."""
        # Calls travel on a channel of their own, so only what is confirmed is sure to be before them.
        getattr(self.control, f'message_{command}')(parameters, _key=uid).wait(TIMEOUT)
        assert self.control.rpc_ping(_key=uid)
