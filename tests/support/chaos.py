"""Chaos: programs, a network between each of them and the broker, a seeded sequence of faults, and what came of it.

The programs are those of ``components/link.py``: two producers, a chain of three stages of which the first is there
twice, and a caller of RPCs. A :class:`Chain` runs them, a :class:`Fault` disturbs them, :mod:`support.evidence` judges
what they have told.
"""

from __future__ import annotations

import bisect
import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.brokers import Broker, RabbitMQ
from support.cluster import Cluster
from support.messaging import memory_alarm
from support.programs import Program
from support.proxy import Proxy, Side

LINK = Path(__file__).parent / 'components' / 'link.py'

CAST = {
    'p1': ('producer',),
    'p2': ('producer',),
    'a1': ('stage', 'a', 'b'),
    'a2': ('stage', 'a', 'b'),
    'b': ('juggler', 'b', 'c'),
    'c': ('trier', 'c', ''),
    'r': ('caller',),
}
"""The programs: their role, and for the stages the queue that they handle and the one they publish to."""

UNTRYING = ('stage', 'c', '')
"""What the last one is where the broker is killed."""

QUEUES = ('a', 'b', 'c')
ALL_QUEUES = {*QUEUES, 'questions'}
LAST = 'c'
STAGES = [name for name, (_, *queues) in CAST.items() if queues]
PRODUCERS = [name for name, (role, *_) in CAST.items() if role == 'producer']

HEARTBEAT = 1
"""Seconds; the shortest that AMQP has."""

STACK_TIMEOUT = 2
"""Seconds that a connection may take to come up."""

LIMIT = 45.0
"""Seconds after which something that has to come about has not."""

GOODBYE = 5.0

CLUSTER_PAUSE = 2.0
"""Seconds between two bursts of messages, at most, on a cluster: what piles up while a node is not noticed to stand
still has to be handled within the time that is given to recover."""


# What the programs have told


@dataclass(frozen=True)
class Entry:
    """A line that a program has told, or has logged.

    :ivar time: when it was read
    :ivar what: its first word; ``log`` for what was logged
    """

    time: float
    what: str
    words: tuple[str, ...]


class Life(Program):
    """A program from its start to its end.

    :ivar journal: what it has told so far
    :ivar was_killed: by SIGKILL
    :ivar may_end: it was asked to, or killed
    """

    def __init__(
        self,
        hear: Callable[[str, Entry], None],
        name: str,
        arguments: list[str],
        environment: dict[str, str],
        cwd: Path,
    ) -> None:
        self.name = name
        self.journal: list[Entry] = []
        self.was_killed = False
        self.may_end = False
        self._hear = hear
        super().__init__(LINK, arguments, environment, cwd)

    def _take(self, line: str) -> None:
        super()._take(line)
        mark, _, rest = line.partition(' ')
        what, *words = rest.split() if mark == '@' else ('log', line)
        entry = Entry(time.monotonic(), what, tuple(words))
        self.journal.append(entry)
        self._hear(self.name, entry)

    def entries(self, what: str, since: float = 0.0) -> list[Entry]:
        """Return what it has told of one kind after a time; it costs no look at what was told before."""
        # The journal is in the order of time, and only grows meanwhile.
        first = bisect.bisect_right(self.journal, since, key=lambda entry: entry.time)
        return [entry for entry in self.journal[first:] if entry.what == what]


class Player:
    """One of the cast: a program that may be killed and started again.

    :param environment: variables that lead it to the broker

    :ivar lives: all that it has had; the last is that of now
    """

    def __init__(
        self,
        name: str,
        role: Sequence[str],
        environment: dict[str, str],
        cwd: Path,
        hear: Callable[[str, Entry], None],
    ) -> None:
        self.name = name
        self.role = role
        self.lives: list[Life] = []
        self._hear = hear
        self._cwd = cwd
        self._environment = {**environment, 'POSTAGE_CONNECT_TIMEOUT': str(LIMIT)}
        self.start()

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def start(self) -> None:
        role, *queues = self.role
        arguments = [role, self.name, str(len(self.lives)), *queues]
        self.lives.append(Life(self._hear, self.name, arguments, self._environment, self._cwd))

    def kill(self) -> None:
        """Kill it with SIGKILL and start it again."""
        self.life.was_killed = self.life.may_end = True
        self.life.kill()
        self.start()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.life.send_signal(signal.SIGCONT)
        self.life.stop()
        for life in self.lives:
            life.stop()


class Chain:
    """The whole cast on a broker. Use it in a ``with``.

    :param has_retries: the last stage fails now and then, and tries again. Not where the broker is killed: it may lose
        what waits in a queue for its next attempt.
    :ivar arrived: the items that have been handled by the last stage, with the time of the first time
    :ivar proxies: by name, each program's own way to the broker
    """

    def __init__(self, broker: Broker | Cluster, cwd: Path, has_retries: bool = True) -> None:
        self.broker = broker
        self.proxies: dict[str, Proxy] = {}
        self.arrived: dict[str, float] = {}
        self._begin = time.monotonic()
        self._handled = 0
        self._changed = threading.Condition()
        self.players: dict[str, Player] = {}
        with contextlib.ExitStack() as stack:
            # The queues come first: what is published before there is one goes nowhere, and is confirmed.
            for names in (STAGES, [*PRODUCERS, 'r']):
                for name in names:
                    role = UNTRYING if name == LAST and not has_retries else CAST[name]
                    self.players[name] = Player(name, role, self._way(name, stack), cwd, self._heard)
                    stack.callback(self.players[name].close)
                self._await(self._is_ready, 'the beginning')
            self._end = stack.pop_all()

    def _way(self, name: str, stack: contextlib.ExitStack) -> dict[str, str]:
        """Return the variables that lead a program to the broker: through a proxy, or to each node of a cluster."""
        broker = self.broker
        if isinstance(broker, Cluster):
            where = {'POSTAGE_HOST': broker.hosts, 'POSTAGE_PORT': str(broker.port), 'POSTAGE_VHOST': broker.vhost}
            return {**where, 'LINK_QUEUES': 'quorum', 'LINK_PAUSE': str(CLUSTER_PAUSE)}
        proxy = self.proxies[name] = Proxy.before(broker)
        stack.callback(proxy.close)
        return {'POSTAGE_URL': proxy.url(broker.url, heartbeat=HEARTBEAT, stack_timeout=STACK_TIMEOUT)}

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _heard(self, name: str, entry: Entry) -> None:
        if entry.what == 'handles':
            with self._changed:
                self._handled += 1
                if name == LAST:
                    self.arrived.setdefault(entry.words[0], entry.time)
                self._changed.notify_all()

    def lives(self) -> Iterator[tuple[str, Life]]:
        """All lives of all players."""
        for name, player in self.players.items():
            for life in player.lives:
                yield name, life

    def tell(self, text: object) -> None:
        """Print what the test does, with the seconds since the beginning."""
        print(f'{time.monotonic() - self._begin:6.2f} {text}')

    # Waiting

    def _is_ready(self) -> bool:
        return all(player.life.entries('begins') for player in self.players.values())

    def await_progress(self, items: int, patience: float) -> None:
        """Wait until the stages have begun with so many more items, for so many seconds at most."""
        with self._changed:
            goal = self._handled + items
            self._changed.wait_for(lambda: self._handled >= goal, patience)

    def await_everybody(self, limit: float = LIMIT) -> float:
        """Wait until each program has done again, by itself, what it is there for, and return how long that took.

        Each producer has had a message confirmed that it published from now on, and it came out at the end; each stage
        has handled a message that was published from now on; a call that was asked from now on was answered.

        :param limit: seconds for all of that
        """
        now = time.monotonic()
        end = now + limit
        for name in PRODUCERS:
            self._await(lambda name=name: self._has_delivered(name, now), f'a message from {name}', end)  # type: ignore[misc]
        for name in STAGES:
            self._await(lambda name=name: self._has_handled(name, now), f'a message handled by {name}', end)  # type: ignore[misc]
        self._await(lambda: self._has_been_answered(now), 'an answer', end)
        return time.monotonic() - now

    def _has_delivered(self, name: str, begin: float) -> bool:
        life = self.players[name].life
        new = {entry.words[0] for entry in life.entries('publishes', begin)}
        confirmed = (entry.words[0] for entry in life.entries('confirmed', begin))
        return any(item in new and item in self.arrived for item in confirmed)

    def _has_handled(self, name: str, begin: float) -> bool:
        new = {
            entry.words[0]
            for producer in PRODUCERS
            for entry in self.players[producer].life.entries('publishes', begin)
        }
        return any(entry.words[0] in new for entry in self.players[name].life.entries('handles', begin))

    def _has_been_answered(self, begin: float) -> bool:
        life = self.players['r'].life
        new = {entry.words[0] for entry in life.entries('asks', begin)}
        return any(entry.words[0] in new for entry in life.entries('answered', begin))

    def _await(self, condition: Callable[[], bool], what: str, deadline: float | None = None) -> None:
        """Look again and again: what has to come about may be in any of many journals."""
        begin = time.monotonic()
        deadline = begin + LIMIT if deadline is None else deadline
        pause = threading.Event()
        while not condition():
            for name, player in self.players.items():
                assert player.life.may_end or not player.life.has_ended, self._told_by_all(
                    f'{name} has ended by itself'
                )
            assert time.monotonic() < deadline, self._told_by_all(f'no sign of {what} within {deadline - begin:.1f} s')
            pause.wait(0.02)

    # The end

    def finish(self) -> None:
        """End every program in good order, first those that begin something, and wait until nothing is left to do."""
        for name in (*PRODUCERS, 'r'):
            self._end_program(name)
        self._await(self._is_empty, 'an end of the messages')
        left = [
            name for name in self.broker.messages() if name not in ALL_QUEUES and not name.startswith('postage.retry.')
        ]
        assert not left, f'left behind: {left}'
        for name in STAGES:
            self._end_program(name)

    def _end_program(self, name: str) -> None:
        life = self.players[name].life
        life.may_end = True
        life.send_signal(signal.SIGTERM)
        try:
            status = life.wait(LIMIT)
        except AssertionError:
            raise AssertionError(self._told_by_all(f'{name} does not end')) from None
        assert status == 0, self._told_by_all(f'{name} ended with {status}')

    def _is_empty(self) -> bool:
        messages = self.broker.messages()  # without those that cannot be told at the moment
        return messages.keys() >= ALL_QUEUES and not any(messages.values())

    def _told_by_all(self, fault: str) -> str:
        """What is wrong, with what is left, what every program has said and, where it still runs, what it is doing."""
        with contextlib.suppress(Exception):  # it is about a failure already
            fault = f'{fault}; messages: {self.broker.messages()}'
        for _, life in self.lives():
            if not life.has_ended:
                life.send_signal(signal.SIGCONT)
                life.send_signal(signal.SIGABRT)  # the interpreter's fault handler prints where every thread is
                with contextlib.suppress(AssertionError):
                    life.wait(GOODBYE)
        return f'{fault}\n{self.logs()}'

    def logs(self) -> str:
        """What every program has said beside its journal, and the end of that, with the seconds since the beginning."""
        told = []
        for name, life in self.lives():
            told.append(f'--- {name}, process {life.pid}')
            entries = list(life.journal)
            shown = [entry for entry in entries if entry.what == 'log'] + [e for e in entries if e.what != 'log'][-3:]
            told += [f'{entry.time - self._begin:6.2f} {entry.what} {" ".join(entry.words)}' for entry in shown]
        return '\n'.join(told)


# Faults


@dataclass(frozen=True)
class Fault:
    """One step of a plan.

    :ivar kind: one of :data:`KINDS`
    :ivar targets: the programs that it hits
    :ivar amount: from 0 to 1, how much of it
    :ivar lasts: for how many more faults, where it lasts
    :ivar items: the next fault comes when the stages have begun with so many more items
    :ivar side: for what happens to one side or in one direction
    """

    kind: str
    targets: tuple[str, ...]
    amount: float
    lasts: int
    items: int
    side: Side

    def __str__(self) -> str:
        return (
            f'{self.kind} {",".join(self.targets)} {self.amount:.2f} {self.side} lasts {self.lasts} items {self.items}'
        )


Undo = Callable[[], object]


def on_networks(act: Callable[[Proxy, Fault], object], lasts: bool = False) -> Callable[[Chain, Fault], Undo | None]:
    """A fault of the ways to the broker that some programs have; where it lasts, they are good again later."""

    def begin(chain: Chain, fault: Fault) -> Undo | None:
        proxies = [chain.proxies[name] for name in fault.targets]
        for proxy in proxies:
            act(proxy, fault)
        return (lambda: [proxy.resume() for proxy in proxies]) if lasts else None

    return begin


def refuse(proxy: Proxy, fault: Fault) -> None:
    proxy.refuse()
    proxy.cut(reset=fault.amount < 0.5)


def cut_after(proxy: Proxy, fault: Fault) -> None:
    proxy.cut_after(int(1 + 5_000 * fault.amount), fault.side)


def close_connections(chain: Chain, fault: Fault) -> None:
    assert not isinstance(chain.broker, Cluster)
    chain.broker.close_all_connections()


def raise_alarm(chain: Chain, fault: Fault) -> Undo:
    assert not isinstance(chain.broker, Cluster)
    alarm = contextlib.ExitStack()
    alarm.enter_context(memory_alarm(chain.broker))
    return alarm.close


def kill(chain: Chain, fault: Fault) -> None:
    for name in fault.targets:
        chain.players[name].kill()


def stop(chain: Chain, fault: Fault) -> Undo:
    lives = [chain.players[name].life for name in fault.targets]
    for life in lives:
        life.send_signal(signal.SIGSTOP)
    return lambda: [life.send_signal(signal.SIGCONT) for life in lives if not life.was_killed]


def kill_broker(chain: Chain, fault: Fault) -> None:
    """Kill the node under everybody, with SIGKILL, and start it again. A private one only."""
    assert isinstance(chain.broker, RabbitMQ)
    chain.broker.node.kill()
    chain.broker.node.start()


BROKER_KILLED = 'broker killed'

KINDS: dict[str, Callable[[Chain, Fault], Undo | None]] = {
    'reset': on_networks(lambda proxy, fault: proxy.cut()),
    'end': on_networks(lambda proxy, fault: proxy.cut(reset=False)),
    'one-sided end': on_networks(lambda proxy, fault: proxy.cut(fault.amount < 0.5, fault.side)),
    'half-open': on_networks(lambda proxy, fault: proxy.swallow()),
    'cut after bytes': on_networks(cut_after),
    'hold': on_networks(lambda proxy, fault: proxy.hold(), lasts=True),
    'delay': on_networks(lambda proxy, fault: proxy.delay(0.2 * fault.amount), lasts=True),
    'bandwidth': on_networks(lambda proxy, fault: proxy.bandwidth(2_000 + 20_000 * fault.amount), lasts=True),
    'refuse': on_networks(refuse, lasts=True),
    'closed by the broker': close_connections,
    'memory alarm': raise_alarm,
    'kill': kill,
    'stop': stop,
    BROKER_KILLED: kill_broker,
}

ON_ANY_BROKER = tuple(kind for kind in KINDS if kind != BROKER_KILLED)
WITHOUT_TARGETS = ('closed by the broker', 'memory alarm', BROKER_KILLED)
ALL_AT_ONCE = 0.15
"""The probability with which a fault of the network hits everybody."""


def plan(
    seed: int, faults: int, kinds: Sequence[str] = ON_ANY_BROKER, targets: Sequence[str] = tuple(CAST)
) -> list[Fault]:
    """Return the sequence of faults that belongs to a seed. Every kind comes once before any comes again.

    A longer plan of the same seed begins with the shorter one.
    """
    chance = random.Random(seed)
    planned: list[Fault] = []
    while len(planned) < faults:
        planned += [_fault(chance, kind, targets) for kind in chance.sample(kinds, len(kinds))]
    return planned[:faults]


def _fault(chance: random.Random, kind: str, targets: Sequence[str]) -> Fault:
    everybody = chance.random() < ALL_AT_ONCE and kind not in ('kill', 'stop')
    one = chance.choice(targets)
    return Fault(
        kind,
        () if kind in WITHOUT_TARGETS else tuple(targets) if everybody else (one,),
        amount=chance.random(),
        lasts=chance.randint(0, 3),
        items=chance.randint(1, 50),
        side=chance.choice(('client', 'broker')),
    )


def disturb(chain: Chain, faults: Sequence[Fault], patience: float) -> None:
    """Have one fault happen after the other, as soon as there is progress; undo those that last, in the end all.

    :param patience: seconds to wait for progress; some faults leave none
    """
    under_way: list[tuple[int, Undo]] = []
    try:
        for number, fault in enumerate(faults):
            chain.tell(fault)
            undo = KINDS[fault.kind](chain, fault)
            if undo is not None:
                under_way.append((number + fault.lasts, undo))
            chain.await_progress(fault.items, patience)
            for end, over in [each for each in under_way if each[0] <= number]:
                under_way.remove((end, over))
                over()
    finally:
        for _, over in under_way:
            over()
