"""Programs that run twice, on Postage 1.2.1 and on this one, and the table of what came of it.

A program's docstring is its row of the table: what it does; then, where the outcome is not the same on both,
``Better: why`` or ``Gone: what instead``. In such a program the comments on the lines that call ``note`` are what this
Postage notes there, as JSON.

``python tests/support/fidelity.py`` writes the table into ``docs/upgrading.rst``.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika

FOLDER = Path(__file__).parents[1] / 'fidelity'
PAGE = Path(__file__).parents[2] / 'docs' / 'upgrading.rst'
TIMEOUT = 15.0

BEGIN, END = '.. The table begins. tests/support/fidelity.py writes it.', '.. The table ends.'
TRACE = 'amq.rabbitmq.trace'
CANCELS = 'postage.cancel'
VERDICTS = ('same', 'better', 'gone')


# Programs and their rows


@dataclass(frozen=True)
class Row:
    """One program, as its docstring describes it.

    :ivar verdict: one of :data:`VERDICTS`
    :ivar why: why it is better, or what there is instead; empty where it is the same
    :ivar notes: what this Postage notes in it, where that is not the same
    """

    path: Path
    what: str
    verdict: str
    why: str
    notes: list[Any]

    @property
    def name(self) -> str:
        return self.path.stem


def read(path: Path) -> Row:
    """Read the row of a program."""
    source = path.read_text()
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring, f'{path.name} has no docstring'
    what, *rest = (' '.join(paragraph.split()) for paragraph in docstring.split('\n\n'))
    verdict, why = 'same', ''
    if rest:
        word, _, why = rest[0].partition(': ')
        verdict = word.lower()
        assert verdict in VERDICTS[1:], f'{path.name}: its second paragraph must begin with "Better: " or "Gone: "'
        why = why[0].upper() + why[1:]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT and 'note(' in token.line]
    return Row(path, what, verdict, why, [json.loads(comment.removeprefix('# ')) for comment in comments])


def rows() -> list[Row]:
    """All programs, in the order of their names."""
    return [read(path) for path in sorted((FOLDER / 'programs').glob('*.py'))]


# What a run came to


@dataclass
class Record:
    """What one run of a program came to.

    :ivar notes: what it noted
    :ivar wire: what it published: exchange, routing key, content type and the decoded body of each message
    :ivar left: how many messages it left in which queue
    :ivar rejected: the bodies of those that it rejected
    :ivar status: its exit status; ``None`` where it had to be killed
    :ivar errors: what it wrote to its standard error
    """

    notes: list[Any] = field(default_factory=list)
    wire: dict[str, list[Any]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    rejected: list[Any] = field(default_factory=list)
    status: int | None = None
    errors: str = ''

    @property
    def outcome(self) -> dict[str, Any]:
        """What two runs are compared by."""
        own = {'notes': self.notes, 'wire': self.wire, 'left': self.left, 'rejected': self.rejected}
        return {**own, 'ended': self.status == 0}


class Run:
    """A program that runs in a virtual host of its own, in which the broker tells of all that is published.

    :param command: the interpreter, with what stands before the program
    """

    def __init__(self, row: Row, command: list[str], node: Any, vhost: str) -> None:
        self._node = node
        self._vhost = vhost
        self._tap = pika.BlockingConnection(pika.URLParameters(node.url(vhost)))
        channel = self._tap.channel()
        channel.queue_declare('tap', exclusive=True)
        channel.queue_bind('tap', TRACE, 'publish.#')
        node.evaluate(f'rabbit_trace:start(<<"{vhost}">>), ""')
        self._keep_what_is_rejected(channel)
        self._channel = channel
        self._process = subprocess.Popen(
            [*command, str(row.path)],
            env={**os.environ, **self._environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding='utf-8',
        )

    def _keep_what_is_rejected(self, channel: Any) -> None:
        """Have what is rejected from any queue of the program end in another one, where it is looked at."""
        channel.exchange_declare('rejected', 'fanout')
        channel.queue_declare('rejected', exclusive=True)
        channel.queue_bind('rejected', 'rejected')
        self._node.evaluate(
            f'rabbit_policy:set(<<"{self._vhost}">>, <<"rejected">>, <<"^(?!tap|rejected)">>, '
            '[{<<"dead-letter-exchange">>, <<"rejected">>}], 0, <<"queues">>, <<"tests">>), ""'
        )

    def _environment(self) -> dict[str, str]:
        return {
            'POSTAGE_HOST': 'localhost',
            'POSTAGE_PORT': str(self._node.port),
            'POSTAGE_VHOST': self._vhost,
            'PYTHONPATH': str(FOLDER),
            'PYTHONUNBUFFERED': '1',
        }

    def record(self) -> Record:
        """Wait until the program has ended, and the broker has done what it asked for."""
        record = Record()
        try:
            output, record.errors = self._process.communicate(timeout=TIMEOUT)
            record.status = self._process.returncode
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, record.errors = self._process.communicate()
        record.notes = [json.loads(line[5:]) for line in output.splitlines() if line.startswith('note ')]
        self._await_broker()
        record.left = {
            name: count for name, count in self._queues().items() if count and name not in ('tap', 'rejected')
        }
        record.rejected = [self._decoded(body) for body in self._rejected()]
        for method, properties, body in self._published():
            exchange, key, content = self._seen(method, properties, body)
            if exchange == CANCELS:
                continue  # 1.2.1 has none
            record.wire.setdefault(f'{exchange} {key}', []).append(content)
        return record

    def _await_broker(self) -> None:
        """Wait until the broker has noticed that the program is gone, and so has read all that it sent."""
        deadline = time.monotonic() + TIMEOUT
        count = 'integer_to_list(length([1 || [{vhost, V}] <- rabbit_networking:connection_info_all([vhost]), V =:= '
        while self._node.evaluate(f'{count}<<"{self._vhost}">>]))') != '1':
            assert time.monotonic() < deadline, 'the connections of a program outlive it'
            time.sleep(0.01)  # nothing tells

    def _queues(self) -> dict[str, int]:
        queues: dict[str, int] = self._node.queues(self._vhost, 'messages')
        return queues

    def _published(self) -> Iterator[tuple[Any, Any, bytes]]:
        while (got := self._channel.basic_get('tap', auto_ack=True))[0] is not None:
            yield got

    def _rejected(self) -> Iterator[bytes]:
        while (got := self._channel.basic_get('rejected', auto_ack=True))[0] is not None:
            if got[1].headers['x-death'][0]['reason'] == 'rejected':  # what has expired comes here, too
                yield got[2]

    def _seen(self, method: Any, properties: Any, body: bytes) -> tuple[str, str, Any]:
        """A message on the wire, without what is never twice the same: addresses to answer to, and process ids."""
        headers = properties.headers
        key = re.sub(r'^(amq\.|postage\.rpc).*', 'the caller', headers['routing_keys'][0])
        content_type = headers['properties'].get('content_type', '')
        decoded = self._decoded(body)
        if not headers['exchange_name']:
            # An answer has a content type, a fingerprint and its duration here: that is a row of its own.
            content_type, decoded = '', {**decoded, 'fingerprint': {}, '_reserved': {}}
        return headers['exchange_name'], key, [content_type, decoded]

    def _decoded(self, body: bytes) -> Any:
        try:
            return self._without_pid(json.loads(body))
        except ValueError:
            return body.decode('latin-1')

    def _without_pid(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._without_pid(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._without_pid(item) for item in value]
        return 'the pid' if value == str(self._process.pid) else 'the vhost' if value == self._vhost else value

    def close(self) -> None:
        """End what still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._tap.close()


def run_twice(row: Row, node: Any, old_python: Path) -> tuple[Record, Record]:
    """Run a program on 1.2.1 and on this Postage, at the same time, and return both records."""
    with contextlib.ExitStack() as stack:
        runs = []
        for command in ([str(old_python), str(FOLDER / 'carried.py')], [sys.executable, '-X', 'faulthandler']):
            run = Run(row, command, node, stack.enter_context(node.new_vhost()))
            stack.callback(run.close)
            runs.append(run)
        old, new = (run.record() for run in runs)
    return old, new


# The table


def table() -> str:
    """The table for the page on upgrading, as reStructuredText."""
    counted = Counter(row.verdict for row in rows())
    lines = [f'{counted["same"]} programs do the same, {counted["better"]} do better, and {counted["gone"]} are gone.']
    lines += ['', '.. list-table::', '   :header-rows: 1', '   :widths: 45 10 45', '']
    lines += _row('A program of 1.2.1', 'Here', 'Why, or what instead')
    for verdict in reversed(VERDICTS):
        for row in rows():
            if row.verdict == verdict:
                lines += _row(row.what, verdict, row.why)
    return '\n'.join(lines)


def _row(*cells: str) -> list[str]:
    lines: list[str] = []
    for number, cell in enumerate(cells):
        wrapped = textwrap.wrap(cell, 105, break_long_words=False, break_on_hyphens=False) or ['']
        lines.append(f'   {"*" if number == 0 else " "} - {wrapped[0]}'.rstrip())
        lines += [f'       {line}' for line in wrapped[1:]]
    return lines


def table_of_the_page() -> str:
    """The table as the page has it."""
    return _parts(PAGE.read_text())[1].strip()


def _parts(text: str) -> tuple[str, str, str]:
    head, _, rest = text.partition(BEGIN)
    written, _, tail = rest.partition(END)
    return head, written, tail


def write() -> None:
    """Write the table into the page."""
    head, _, tail = _parts(PAGE.read_text())
    PAGE.write_text(f'{head}{BEGIN}\n\n{table()}\n\n{END}{tail}')


if __name__ == '__main__':
    write()
