"""The demos of Missive."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support.brokers import Broker
from support.programs import Program

DEMOS = Path(__file__).parents[2] / 'demos'


def test_the_quickstart_greets_whoever_says_hello(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMOS / 'missive_quickstart' / 'hello_processor.py')]
    done = subprocess.run(command, input=b'Hello\nHello', capture_output=True, timeout=20, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b'Hello whoever you are\n' * 2), done.stderr


def test_one_processor_answers_over_rabbitmq_and_http(broker: Broker, run_program: Callable[..., Program]) -> None:
    environment = {'POSTAGE_URL': broker.url}
    greeter = run_program(DEMOS / 'missive_anywhere' / 'greeter.py', ['0'], environment)
    url = greeter.expect('serving on').split()[-1]
    greeter.expect('consuming from')
    sender = run_program(DEMOS / 'missive_anywhere' / 'greeter_send.py', [url], environment)
    assert sender.wait() == 0, sender.output
    assert sender.lines == ['Hello RabbitMQ', 'Hello HTTP']
    greeter.expect('Greeting RabbitMQ')
    greeter.expect('Greeting HTTP')
    greeter.send_signal(signal.SIGTERM)
    assert greeter.wait() == 0, greeter.output
