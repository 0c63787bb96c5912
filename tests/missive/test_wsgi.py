"""Messages that arrive by HTTP."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from missive.conftest import AnyProcessor, Run, wait_until
from postage import missive
from postage.missive.adapters.wsgi import WSGIAdapter
from support.messaging import LogBook
from support.programs import Program


@pytest.fixture
def adapter(processor: AnyProcessor) -> Iterator[WSGIAdapter[Any]]:
    """An adapter whose processor does what the message says."""

    @processor.handle_for(lambda message: message.raw_data != b'nobody')
    def handle(message: Any, ctx: Any) -> None:
        if message.raw_data == b'raise':
            raise ValueError('no good')
        if message.raw_data == b'answer':
            ctx.reply(b'<a/>', 'text/xml')
        if message.raw_data != b'forget':
            getattr(ctx, 'ack' if message.raw_data == b'answer' else message.raw_data.decode())()

    adapter: WSGIAdapter[Any] = WSGIAdapter(missive.RawMessage, processor)
    yield adapter
    adapter.close()


def post(adapter: WSGIAdapter[Any], data: bytes, **headers: str) -> Any:
    return adapter.app.test_client().post('/', data=data, headers=headers)


def test_an_acknowledged_message_is_answered_with_200(adapter: WSGIAdapter[Any]) -> None:
    response = post(adapter, b'ack')
    assert (response.status_code, response.get_json()) == (200, {'result': 'ack'})


@pytest.mark.parametrize('data', [b'nack', b'reject', b'raise', b'forget', b'nobody'])
def test_everything_else_is_answered_with_500(adapter: WSGIAdapter[Any], data: bytes) -> None:
    response = post(adapter, data)
    assert (response.status_code, response.get_json()) == (500, {'result': 'nack'})


def test_what_failed_is_in_the_log(adapter: WSGIAdapter[Any], log: LogBook) -> None:
    post(adapter, b'raise')
    assert log.find('ERROR', 'could not be handled', 'no good')


@pytest.mark.parametrize('data', [b'raise', b'forget', b'nobody'])
def test_a_dead_letter_is_answered_with_200(adapter: WSGIAdapter[Any], processor: AnyProcessor, data: bytes) -> None:
    dlq: dict[bytes, Any] = {}
    processor.set_dlq(dlq)
    assert post(adapter, data, **{'X-Message-Id': 'mine'}).status_code == 200
    assert dlq[b'mine'][0].raw_data == data


def test_an_answer_is_the_body_of_the_response(adapter: WSGIAdapter[Any]) -> None:
    response = post(adapter, b'answer')
    assert (response.status_code, response.data, response.mimetype) == (200, b'<a/>', 'text/xml')


def test_the_handler_sees_the_headers(processor: AnyProcessor) -> None:
    seen = []

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        seen.append(message.headers['X-Colour'])
        ctx.ack()

    adapter: WSGIAdapter[Any] = WSGIAdapter(missive.RawMessage, processor)
    post(adapter, b'', **{'X-Colour': 'blue'})
    adapter.close()
    assert seen == ['blue']


def test_only_posts_to_the_root_are_messages(adapter: WSGIAdapter[Any]) -> None:
    assert adapter.app.test_client().get('/').status_code == 405
    assert adapter.app.test_client().post('/other').status_code == 404


def test_the_first_request_starts_the_processor_and_close_ends_it(
    adapter: WSGIAdapter[Any], processor: AnyProcessor
) -> None:
    told: list[str] = []
    processor.before_processing(lambda ctx: told.append('startup'))
    processor.after_processing(lambda ctx: told.append('shutdown'))
    assert told == []
    post(adapter, b'ack')
    post(adapter, b'ack')
    assert told == ['startup']
    adapter.close()
    assert told == ['startup', 'shutdown']


def test_requests_are_handled_side_by_side(processor: AnyProcessor) -> None:
    together = threading.Barrier(4, timeout=10)

    @processor.handle_for(lambda message: True)
    def handle(message: Any, ctx: Any) -> None:
        together.wait()
        (ctx.ack if message.raw_data == b'ack' else ctx.nack)()

    adapter: WSGIAdapter[Any] = WSGIAdapter(missive.RawMessage, processor)
    with ThreadPoolExecutor(4) as pool:
        responses = pool.map(lambda data: post(adapter, data).get_json(), [b'ack', b'nack'] * 2)
    adapter.close()
    assert list(responses) == [{'result': 'ack'}, {'result': 'nack'}] * 2


def ask(url: str, data: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_run_serves_until_it_is_stopped(adapter: WSGIAdapter[Any], run: Callable[..., Run]) -> None:
    running = run(adapter, '127.0.0.1', 0)
    wait_until(lambda: adapter.server_address, 'it does not serve')
    url = 'http://{}:{}/'.format(*(adapter.server_address or ()))
    assert ask(url, b'ack') == (200, {'result': 'ack'})
    assert ask(url, b'nack') == (500, {'result': 'nack'})
    running.stop()
    with pytest.raises(OSError, match='refused'):
        ask(url, b'ack')


PROGRAM = """
import logging, time
from postage import missive
from postage.missive.adapters.wsgi import WSGIAdapter

logging.basicConfig(level=logging.INFO, format='%(message)s')
processor = missive.Processor()
processor.after_processing(lambda ctx: print('shutdown', flush=True))

@processor.handle_for(lambda message: True)
def handle(message, ctx):
    print('begin', flush=True)
    time.sleep(0.5)
    ctx.ack()
    print('end', flush=True)

WSGIAdapter(missive.RawMessage, processor).run(port=0)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_message_lets_it_end(
    run_program: Callable[..., Program], number: signal.Signals
) -> None:
    program = run_program(PROGRAM)
    url = program.expect('serving on').split()[-1]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, url, b'')
        program.expect('begin')
        program.send_signal(number)
        assert asked.result(10) == (200, {'result': 'ack'})
    assert program.wait() == 0
    assert program.lines[-3:] == ['begin', 'end', 'shutdown']


def test_the_end_of_the_process_calls_the_shutdown_hooks(run_program: Callable[..., Program]) -> None:
    program = run_program(PROGRAM.replace('.run(port=0)', ".app.test_client().post('/')"))
    assert program.wait() == 0
    assert program.lines[-1] == 'shutdown'
