"""Record what a terminal shows, as pictures for the pages: ``make pictures``. Each is made of real output.

``images/demo.svg``
    the first demos of ``make demo``, and what it says at its end
``images/top.svg``
    ``postage top``, for the shop of ``demos/order_system`` on a broker in memory

Whose machine recorded them is nobody's concern: the host and the user are called ``ada``.
"""

from __future__ import annotations

import getpass
import io
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from postage import messaging
from postage.cli.operate.asking import Answer, Expected, ask, operator
from postage.cli.operate.top import View
from postage.testing import Broker, running

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / 'images'
DEMOS = DOCS.parent / 'demos'
WIDE = 118  # columns, which the longest line of postage top takes
LEFT_OUT = 'post office'  # the label of the first lines that the picture of the demos leaves out
TIMEOUT = 30.0

TEMPLATE = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own has fonts from the network, which a site that is read offline must not need."""


def terminal() -> Console:
    """What is printed here is recorded, and shown nowhere."""
    return Console(record=True, width=WIDE, file=io.StringIO(), force_terminal=True, color_system='standard')


def save(console: Console, name: str, title: str) -> None:
    """Write the picture of what was printed."""
    svg = console.export_svg(title=title, code_format=TEMPLATE, unique_id=name)
    (IMAGES / f'{name}.svg').write_text(re.sub(r'[ \t]+\n', '\n', svg), encoding='utf-8')


def record_demo() -> None:
    """Run the demos on a terminal, for which they have colours."""
    end, terminal_end = os.openpty()
    ours = {'POSTAGE_URL', 'POSTAGE_HOST', 'NO_COLOR'}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    with subprocess.Popen([sys.executable, str(DEMOS / 'run_all.py')], stdout=terminal_end, env=environment) as demos:
        os.close(terminal_end)
        printed = b''.join(iter(lambda: _read(end), b''))
    os.close(end)
    if demos.returncode:
        sys.exit(printed.decode())
    lines = [_anonymous(line) for line in printed.decode().splitlines()]
    left_out = next(number for number, line in enumerate(lines) if f'[{LEFT_OUT}]' in line)
    console = terminal()
    for line in lines[:left_out]:
        console.print(Text.from_ansi(line), no_wrap=True, overflow='ellipsis')
    console.print('…')
    console.print(Text.from_ansi(lines[-1]))
    save(console, 'demo', 'make demo')


def _read(end: int) -> bytes:
    try:
        return os.read(end, 65536)
    except OSError:  # as Linux tells that the other side is closed
        return b''


def _anonymous(line: str) -> str:
    for own in (socket.gethostname(), getpass.getuser()):
        line = re.sub(rf"(?<=['@]){re.escape(own)}\b", 'ada', line)
    return line


def record_top() -> None:
    """Run the shop, send it orders, of which one fails, and look at it as ``postage top`` does."""
    logging.disable()
    socket.gethostname = lambda: 'ada'
    sys.path.insert(0, str(DEMOS / 'order_system'))
    from notifier import Notifier
    from orders import OrderProcessor
    from pricing import Pricing
    from shop_shared import OrderProducer, PriceProducer

    messaging.MessageProcessor.control = True
    with tempfile.TemporaryDirectory() as folder, Broker() as broker:
        os.environ['POSTAGE_URL'] = broker.url
        shop = (Pricing, lambda: OrderProcessor(folder), lambda: Notifier('notifier'))
        with running(*shop), OrderProducer() as orders, PriceProducer() as prices, operator(TIMEOUT) as asking:
            orders.message_register('Ada')
            for item, customer in (('tea', 'Ada'), ('book', 'Bob')):
                orders.message_order(item=item, customer=customer)
            answers: list[Answer] = []
            while not _is_worth_a_look(answers):
                assert prices.rpc_price('tea')
                answers = ask(asking, 'stats', '', TIMEOUT, Expected(len(shop)))
    view = View('name')
    view.update(answers)
    console = terminal()
    console.print(view)
    save(console, 'top', 'postage top')


def _is_worth_a_look(answers: list[Answer]) -> bool:
    """Whether each component has handled something, and the order that fails has failed."""
    messages = [answer.value['messages'] for answer in answers]
    return bool(messages) and all(each['handled'] for each in messages) and any(each['dead'] for each in messages)


if __name__ == '__main__':
    record_demo()
    record_top()
