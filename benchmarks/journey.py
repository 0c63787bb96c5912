"""The way of one message through Postage's functions, as it is really gone: ``journey.py out`` or ``in``.

``docs/architecture.rst`` has both ways as numbered lists, and ``tests/docs/test_architecture_page.py`` holds that they
are true::

    python benchmarks/journey.py out          # from producer.message_NAME() to the write to the socket
    python benchmarks/journey.py in           # from the read of the socket to the write of the acknowledgement
    python benchmarks/journey.py in --all     # what is passed over, too
    python benchmarks/journey.py --write      # put both lists on the page, where what follows a hop is kept

**A hop** is a function of Postage that the thread enters between the two ends, in the order in which they are first
entered; on the way in, the function that reads is the first. Constructors are hops. A comprehension is part of the
function in which it is written. **Passed over** is what a reader takes in without going there: a function of three
statements at most, nested ones included and its docstring not, that calls no hop on this way. A property is a function,
and what pika or the standard library does is not listed.

Several messages travel, one after the other, and the shortest of their ways is taken: what others have besides is what
a thread does now and then, such as starting the tick.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import postage
from postage import messaging, microthreads
from postage.testing.broker import Broker

PACKAGE = Path(postage.__file__).parent
MESSAGES = 20
PAUSE = 0.003
"""Seconds between two messages: the first is done with, and what a thread does after a while is not yet due."""
PATIENCE = 20.0
PASSED_OVER = 3
"""Statements of a function that is passed over, at most."""


@dataclass(frozen=True)
class Way:
    """One of the two ways.

    :ivar title: of its section on the page
    :ivar limit: hops, at most; a test holds it
    """

    title: str
    limit: int


WAYS = {'out': Way('A message out', limit=18), 'in': Way('A message in', limit=26)}
"""The limits in one place. Who shortens a way lowers its own."""


@dataclass(frozen=True)
class Hop:
    """One function on the way.

    :ivar file: below the package
    :ivar function: its name, with the class or function in which it is written
    """

    file: str
    function: str

    def __str__(self) -> str:
        return f'``{self.file}``: ``{self.function}``'


Event = tuple[str, Sequence[CodeType]]
"""What happened, and the functions of Postage that were active then, the outermost first and an entered one last."""


class Recorder:
    """Takes down what the present thread does, for the length of a ``with``: ``sys.setprofile``.

    :ivar events: ``enter`` for a function of Postage, ``send`` and ``recv`` on a socket, and what else is added
    """

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __enter__(self) -> Recorder:
        sys.setprofile(self._take_down)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _take_down(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == 'call' and is_ours(frame.f_code):
            self.events.append(('enter', stack_of(frame)))
        elif event == 'c_call' and isinstance(getattr(argument, '__self__', None), socket.socket):
            self.events.append((argument.__name__, stack_of(frame)))


def is_ours(code: CodeType) -> bool:
    """Whether this is a function of Postage, and no comprehension, which is part of one."""
    return code.co_filename.startswith(f'{PACKAGE}/') and code.co_name not in COMPREHENSIONS


COMPREHENSIONS = ('<listcomp>', '<setcomp>', '<dictcomp>', '<genexpr>')


def stack_of(frame: FrameType | None) -> list[CodeType]:
    """The functions of Postage that are active in a frame, the outermost first."""
    stack = []
    while frame is not None:
        if is_ours(frame.f_code):
            stack.append(frame.f_code)
        frame = frame.f_back
    return stack[::-1]


# The two ways


class JourneyExchange(messaging.Exchange):
    name = 'journey-exchange'


class JourneyProducer(messaging.GenericProducer):
    eks = [(JourneyExchange, 'journey')]


def ways_out(url: str) -> Iterator[list[Event]]:
    """What happens from a producer's method to the socket, for each of some messages."""
    with JourneyProducer(None, url) as producer:
        producer.message_x(1)
        for _ in range(MESSAGES):
            producer.flush()
            time.sleep(PAUSE)
            with Recorder() as recorder:
                producer.message_x(1)
            yield from between(recorder.events, '')


def ways_in(url: str) -> Iterator[list[Event]]:
    """What happens from the socket to the acknowledgement, for each of some messages."""
    recorder, handled = Recorder(), threading.Semaphore(0)
    left = MESSAGES

    class Processor(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'x')
        def msg_x(self, content: dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            recorder.events.append(('handled', []))
            handled.release()
            if not left:
                raise microthreads.ExitScheduler

    processor = Processor({}, [(JourneyExchange, [('journey-queue', 'journey')])], url)
    scheduler = microthreads.MicroScheduler()
    scheduler.add_microthread(processor)
    sender = threading.Thread(target=send_one_by_one, args=(url, handled))
    sender.start()
    with recorder:
        for _ in scheduler.main():
            pass
    sender.join()
    processor.close()
    yield from between(recorder.events, 'recv')


def send_one_by_one(url: str, handled: threading.Semaphore) -> None:
    """Send messages, each when the one before it has been handled and its reader waits again."""
    with JourneyProducer(None, url) as producer:
        for _ in range(MESSAGES):
            producer.message_x(1)
            if not handled.acquire(timeout=PATIENCE):
                raise TimeoutError(f'a message was not handled within {PATIENCE:g} s')
            time.sleep(PAUSE)


def between(events: Sequence[Event], begin: str) -> Iterator[list[Event]]:
    """The events of each way: up to the first write, or from the last read before a handler to the write after it."""
    way: list[Event] = []
    is_handled = begin == ''
    for event in events:
        if event[0] == begin and not is_handled:
            way = []
        is_handled = is_handled or event[0] == 'handled'
        if event[0] == 'send' and is_handled:
            if not begin or (way and way[0][0] == begin):  # else the I/O thread has read it, this thread being late
                yield way
            way, is_handled = [], False
            if not begin:
                return
        way.append(event)


# From events to hops


def hops_of(way: Sequence[Event], with_all: bool = False) -> list[Hop]:
    """The functions of a way in the order in which they are first entered.

    :param with_all: those that are passed over, too
    """
    callees: dict[CodeType, set[CodeType]] = {}
    for _, stack in way:
        for caller, callee in itertools.pairwise(stack):
            callees.setdefault(caller, set()).add(callee)
    entered = dict.fromkeys(stack[-1] for kind, stack in way if kind in ('enter', 'recv'))
    return [hop_at(code) for code in entered if with_all or is_hop(code, callees)]


def is_hop(code: CodeType, callees: dict[CodeType, set[CodeType]], above: tuple[CodeType, ...] = ()) -> bool:
    """Whether a reader has to go there."""
    if code.co_name == '__init__' or statements_of(code) > PASSED_OVER:
        return True
    below = callees.get(code, set()) - {code, *above}
    return any(is_hop(callee, callees, (*above, code)) for callee in below)


def hop_at(code: CodeType) -> Hop:
    """A function by its names."""
    function, _ = functions_of(code.co_filename)[code.co_firstlineno, code.co_name]
    return Hop(Path(code.co_filename).relative_to(PACKAGE).as_posix(), function)


def statements_of(code: CodeType) -> int:
    """How many statements a function has, nested ones included, its docstring not."""
    return functions_of(code.co_filename)[code.co_firstlineno, code.co_name][1]


FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def functions_of(file: str) -> dict[tuple[int, str], tuple[str, int]]:
    """Of each function in a file, by first line and name: the name with what it is written in, and its statements."""
    found: dict[tuple[int, str], tuple[str, int]] = {}

    def look(node: ast.AST, outer: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            inner = outer
            if isinstance(child, FUNCTIONS | ast.ClassDef):
                inner = (*outer, child.name)
            if isinstance(child, FUNCTIONS):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                statements = sum(isinstance(each, ast.stmt) for part in child.body for each in ast.walk(part))
                found[first, child.name] = '.'.join(inner), statements - (ast.get_docstring(child) is not None)
            elif isinstance(child, ast.Lambda):
                found[child.lineno, '<lambda>'] = '.'.join((*outer, 'lambda')), 1
            look(child, inner)

    look(ast.parse(Path(file).read_text(encoding='utf-8')), ())
    return found


def shortest(name: str, url: str) -> list[Event]:
    """The way of the message that has the least done besides."""
    ways = list({'out': ways_out, 'in': ways_in}[name](url))
    if not ways:
        raise RuntimeError('no message went all the way in the thread that sent it, or waited for it')
    return min(ways, key=lambda way: len(hops_of(way, with_all=True)))


# The page


def write(hops: dict[str, list[Hop]]) -> None:
    """Replace the lists on the page; words that follow a hop stay with it, where it is still one."""
    text = PAGE.read_text(encoding='utf-8')
    words = {line[1]: line[2] for line in ITEM.finditer(text)}
    for name, found in hops.items():
        before, title, after = text.partition(f'\n{WAYS[name].title}\n---')
        if not title:
            raise ValueError(f'{PAGE} has no section {WAYS[name].title!r}')
        items = ''.join(f'{number}. {hop}{words.get(str(hop), "")}\n' for number, hop in enumerate(found, 1))
        text = before + title + LIST.sub(lambda _, items=items: items, after, count=1)  # type: ignore[misc]
    PAGE.write_text(text, encoding='utf-8')


PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'architecture.rst'
ITEM = re.compile(r'^\d+\. (``[^`]+``: ``[^`]+``)(.*)$', re.MULTILINE)
LIST = re.compile(r'(^\d+\. .*\n)+', re.MULTILINE)


def main(words: Sequence[str] | None = None) -> None:
    """Print or write what the command line asks for."""
    parser = argparse.ArgumentParser(prog='journey.py', description='The way of a message, function by function.')
    parser.add_argument('way', nargs='?', choices=tuple(WAYS), help='which way to print')
    parser.add_argument('--write', action='store_true', help=f'put both on {PAGE.name}')
    parser.add_argument('--all', action='store_true', help='print what is passed over, too')
    parser.add_argument('--url', help='a broker to use; by default an embedded one is started')
    parser.add_argument('--json', action='store_true', help='print the hops as JSON')
    options = parser.parse_args(words)
    if options.write == bool(options.way):
        parser.error('either a way or --write')
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(Broker('127.0.0.1', 0)).url
        names = list(WAYS) if options.write else [options.way]
        hops = {name: hops_of(shortest(name, url), options.all) for name in names}
    if options.write:
        write(hops)
        return
    found = hops[options.way]
    if options.json:
        sys.stdout.write(json.dumps([[hop.file, hop.function] for hop in found]) + '\n')
    else:
        sys.stdout.write(''.join(f'{number}. {hop}\n' for number, hop in enumerate(found, 1)))


if __name__ == '__main__':
    main()
