"""The snippets of Missive's quickstart, completed where they are fragments, with ``from postage import missive``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from missive.conftest import RedisServer
from support.messaging import LogBook
from support.programs import Program

SIMPLE = """
from postage import missive
from postage.missive.adapters.stdin import StdinAdapter

processor = missive.Processor()


@processor.handle_for(lambda m: m.raw_data == b"Hello")
def greet(message, ctx):
    print("Hello whoever you are")
    ctx.ack()


stdin_processor = StdinAdapter(missive.RawMessage, processor)

if __name__ == "__main__":
    stdin_processor.run()
"""

MATCHER = """
from postage import missive


class HasLabelMatcher:
    def __init__(self, label):
        self.label = label

    def __call__(self, json_message):
        return json_message.get_json().get("label") == self.label


processor = missive.Processor()
told = []


@processor.handle_for(HasLabelMatcher("sign-in"))
def record_sign_ins(message, ctx):
    told.append("sign-in")
    ctx.ack()


@processor.handle_for(HasLabelMatcher("sign-out"))
def another_matcher(message, ctx):
    told.append("another")
    ctx.ack()
"""

TYPED = """
from postage import missive

# All handlers for this message will be typechecked against JSONMessage
json_processor: missive.Processor[missive.JSONMessage] = missive.Processor()


@json_processor.handle_for(lambda message: message.get_json()["name"] == "Cal")
def greet(message: missive.JSONMessage, ctx: missive.HandlingContext[missive.JSONMessage]) -> None:
    ctx.ack()
"""

HOOKS = """
from datetime import datetime
from logging import getLogger

from postage import missive

proc = missive.Processor()
logger = getLogger(__name__)


@proc.handle_for(lambda message: True)
def some_handler(message, ctx):
    ctx.ack()


@proc.before_handling
def record_start_time(processing_ctx, handling_ctx):
    handling_ctx.state.start_time = datetime.now()


@proc.after_handling
def print_end_time(processing_ctx, handling_ctx):
    logger.debug("took %s", datetime.now() - handling_ctx.state.start_time)
"""

REDIS = """
from postage import missive
from postage.missive.adapters.redis import RedisPubSubAdapter

processor = missive.Processor()


@processor.handle_for(lambda m: m.raw_data == b"Hello")
def greet(message, ctx):
    print("Hello whoever you are", flush=True)
    ctx.ack()


redis_pubsub_processor = RedisPubSubAdapter(
    missive.RawMessage, processor)

redis_pubsub_processor.run()
"""

TESTING = """
import json

test_client = json_processor.test_client()

message = missive.JSONMessage(json.dumps({"name": "Cal"}).encode("utf-8"))

test_client.send(message)

assert message in test_client.acked
"""

DEAD_LETTERS = """
from postage.missive.dlq.sqlite import SQLiteDLQ

# Problem messages will be written to this sqlite database
json_processor.set_dlq(SQLiteDLQ("/var/dlq.db"))
"""


def run(*snippets: str, **names: Any) -> dict[str, Any]:
    """Run snippets as one module, and return its names."""
    namespace = {'__name__': 'quickstart', **names}
    for snippet in snippets:
        exec(compile(snippet, '003', 'exec'), namespace)
    return namespace


def test_the_simple_example(tmp_path: Path, run_program: Callable[..., Program]) -> None:
    path = tmp_path / 'input'
    path.write_text('Hello\nHello\n')
    program = run_program(f'import os\nos.dup2(os.open({str(path)!r}, os.O_RDONLY), 0)\n{SIMPLE}')
    assert program.wait() == 0
    assert program.lines == ['Hello whoever you are'] * 2


def test_routing_by_a_class_of_matchers() -> None:
    names = run(MATCHER)
    names['processor'].test_client().send(names['missive'].JSONMessage(b'{"label": "sign-in"}'))
    assert names['told'] == ['sign-in']


def test_a_typed_processor_and_the_test_client() -> None:
    run(TYPED, TESTING)


def test_hooks_that_take_the_time(log: LogBook) -> None:
    names = run(HOOKS)
    logger = logging.getLogger('quickstart')
    book = LogBook()
    logger.addHandler(book)
    logger.setLevel(logging.DEBUG)
    try:
        names['proc'].test_client().send(names['missive'].RawMessage(b''))
    finally:
        logger.removeHandler(book)
    assert book.find('took 0:00:00')


def test_the_same_over_redis(redis_server: RedisServer, run_program: Callable[..., Program]) -> None:
    program = run_program(REDIS, environment={'REDIS_URL': redis_server.url})
    redis_server.await_subscriber()
    with redis_server.client() as client:
        client.publish('any', b'Hello')
    program.expect('Hello whoever you are')


def test_a_dead_letter_queue_in_a_file(tmp_path: Path) -> None:
    names = run(TYPED, DEAD_LETTERS.replace('/var/dlq.db', str(tmp_path / 'dlq.db')))
    processor, missive = names['json_processor'], names['missive']
    client, message = processor.test_client(), missive.JSONMessage(b'{"name": "Ann"}')
    client.send(message)
    assert message in client.acked
    assert processor.dlq[message.message_id] == (message, 'no matching handlers')
    processor.dlq.close()


def test_the_snippets_are_those_of_the_documents() -> None:
    """What the page on Missive shows is what is run here."""
    page = (Path(__file__).parents[2] / 'docs' / 'missive.rst').read_text()
    page_lines = {line.strip() for line in page.splitlines()}
    assert [line for line in SIMPLE.splitlines() if line.strip().replace('"', "'") not in page_lines] == []
