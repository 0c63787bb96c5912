"""Run every demo as it would run in a few shells, with their output side by side: what `make demo` calls.

Receivers and senders are processes of their own. The broker is the embedded one, started here, or, where POSTAGE_URL
or POSTAGE_HOST is set, that RabbitMQ. The exit status is 0 where every line that should have appeared did. Names, as of
the functions below, run those demos alone: `run_all.py basic rpc`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from postage import messaging
from postage.generic_application import GenericApplicationExchange

DEMOS = Path(__file__).resolve().parent
TIMEOUT = 15.0
LABEL_WIDTH = len('[advanced receiver 1]')
COLOURS = ('36', '33', '35', '32')

sys.path[:0] = [str(DEMOS / demo) for demo in ('basic_echo', 'concurrent_rpc', 'retries', 'rpc_gather')]
import concurrent_shared  # noqa: E402
import echo_shared  # noqa: E402
import gather_shared  # noqa: E402
import post_shared  # noqa: E402


class Missing(Exception):
    """A line did not appear in time."""


class Ending:
    """Ends the demos on SIGINT and SIGTERM, but never between the start of a process and our knowing of it."""

    def __init__(self):
        self.held_back = 0
        self.status = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.on_signal)

    def on_signal(self, number, frame):
        self.status = 128 + number
        if not self.held_back:
            sys.exit(self.status)

    def __enter__(self):
        self.held_back += 1

    def __exit__(self, *exception):
        self.held_back -= 1
        if self.status is not None and not self.held_back:
            sys.exit(self.status)


class Program:
    """A process whose output appears here, line by line, behind a label."""

    running: list['Program'] = []
    started = 0
    changed = threading.Condition()  # one for all: a line may come from any of several

    def __init__(self, label, *arguments, stdin=None):
        self.label = label
        self.lines = []
        self.colour = COLOURS[Program.started % len(COLOURS)]
        with ending:
            self.process = subprocess.Popen(
                [sys.executable, '-u', *arguments],
                cwd=DEMOS,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # Ctrl-C reaches this program alone, which then ends the others.
                start_new_session=True,
            )
            self.reader = threading.Thread(target=self._read, daemon=True)
            self.reader.start()
            Program.running.append(self)
        Program.started += 1

    def _read(self):
        for line in self.process.stdout:
            with self.changed:
                show(self.label, line.rstrip(), self.colour)
                self.lines.append(line)
                self.changed.notify_all()
        with self.changed:
            self.lines.append(None)
            self.changed.notify_all()

    def expect(self, text, times=1):
        """Wait until that many lines contain the text, and return the last of them."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.find(text)) >= times or None in self.lines, TIMEOUT)
            if len(self.find(text)) < times:
                raise Missing(f'[{self.label}] did not print {text!r}')
            return self.find(text)[times - 1]

    @classmethod
    def expect_among(cls, programs, text, times):
        """Wait until the programs have printed that many such lines together."""
        with cls.changed:
            if not cls.changed.wait_for(lambda: sum(len(each.find(text)) for each in programs) >= times, TIMEOUT):
                raise Missing(f'{", ".join(each.label for each in programs)} did not print {text!r} {times} times')

    def find(self, text):
        return [line for line in self.lines if line is not None and text in line]

    def wait(self):
        """Wait until the program has ended by itself."""
        try:
            status = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Missing(f'[{self.label}] did not end') from None
        if status != 0:
            raise Missing(f'[{self.label}] ended with status {status}')
        self.end()

    def end(self):
        """End the program where it still runs, and read the rest of its output."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.reader.join()
        if self in Program.running:
            Program.running.remove(self)


def show(label, text, colour='1'):
    label = f'[{label}]'.ljust(LABEL_WIDTH)
    if sys.stdout.isatty() and 'NO_COLOR' not in os.environ:
        label = f'\x1b[{colour}m{label}\x1b[0m'
    # In one piece: several threads print.
    print(f'{label} {text}\n', end='', flush=True)


def start_broker():
    """Start the embedded broker, unless the environment names another one."""
    if 'POSTAGE_URL' in os.environ or 'POSTAGE_HOST' in os.environ:
        show('broker', 'the one that POSTAGE_URL or POSTAGE_HOST names')
        return
    broker = Program('broker', '-m', 'postage.broker', '--port', '0')
    os.environ['POSTAGE_URL'] = re.search(r'amqp://\S+', broker.expect('amqp://'))[0]


def receiver(label, demo, script='echo_receive.py'):
    program = Program(label, f'{demo}/{script}')
    program.expect('Waiting for messages')
    return program


def send(label, demo, script='echo_send.py'):
    program = Program(label, f'{demo}/{script}')
    program.wait()
    show(label, '(ended)', program.colour)
    return program


def quit_all(receivers, key, exchange=echo_shared.EchoExchange):
    """End receivers as Postage does it: by a command message named 'quit'."""
    with messaging.GenericProducer() as producer:
        producer.message_quit(_eks=[(exchange, key)])
    for each in receivers:
        each.wait()


def basic():
    receive = receiver('basic receiver', 'basic_echo')
    send('basic sender', 'basic_echo')
    receive.expect('A test message')
    quit_all([receive], 'echo-rk')
    return 'a message was sent and received'


def advanced():
    receivers = [receiver(f'advanced receiver {number}', 'advanced_echo') for number in (1, 2)]
    for _ in receivers:
        send('advanced sender', 'advanced_echo')
    for each in receivers:
        each.expect('A single test message')
        each.expect('A fanout test message', times=2)
        each.expect("'echo_send'", times=3)
    quit_all(receivers, 'echo-fanout-rk')
    return 'two receivers took single messages in turn and each got every fanout message'


def rpc():
    receive = receiver('rpc receiver', 'rpc_echo')
    sender = send('rpc sender', 'rpc_echo')
    receive.expect('RPC test message')
    sender.expect('RPC message received')
    quit_all([receive], 'echo-rk')
    return 'a call was answered'


def concurrent_rpc():
    receive = receiver('concurrent answer', 'concurrent_rpc', 'concurrent_answer.py')
    sender = send('concurrent ask', 'concurrent_rpc', 'concurrent_ask.py')
    for text in ('500 answers at once: 124750', 'A coroutine and a thread answered [5, 4]', 'costs 400'):
        sender.expect(text)
    receive.expect('Asked for 100 prices')
    quit_all([receive], 'price-rk', concurrent_shared.ConcurrentExchange)
    return 'hundreds of calls were answered at once'


def rpc_gather():
    stations = [
        Program(name, 'rpc_gather/gather_answer.py', name, *words)
        for name, *words in (('Oslo', '3'), ('Cairo', '31'), ('Quito', '14', '60'))
    ]
    for each in stations:
        each.expect('Waiting for messages')
    asker = Program('weather', 'rpc_gather/gather_ask.py', 'Oslo', 'Cairo', 'Quito', 'Lima')
    asker.wait()
    for text in ('Oslo: 3 degrees', 'Cairo: 31 degrees', 'Lima was silent', 'Quito was silent'):
        asker.expect(text)
    stations[2].expect('Nobody waits for it any more')
    quit_all(stations, '', gather_shared.WeatherExchange)
    return 'all stations were asked, and two of them answered in time'


def retries():
    with tempfile.TemporaryDirectory() as directory:
        letters = f'{directory}/letters.db'
        office = Program('post office', 'retries/post_office.py', letters)
        office.expect('Waiting for messages')
        send('letters', 'retries', 'send_letters.py')
        office.expect('Ann was brought to Elm Street after 2 failures')
        dead_letters('list', letters).expect('no street for Bob')
        send('Bob', 'retries', 'move_in.py')
        dead_letters('replay', letters).expect('1 letter sent')
        office.expect('Bob was brought to Oak Street after 2 failures')
        quit_all([office], 'post-rk', post_shared.PostExchange)
    return 'what failed was tried again, what was dead was kept and sent back'


def dead_letters(command, store):
    program = Program(f'dead-letters {command}', '-m', 'postage.cli', 'dead-letters', command, '--store', store)
    program.wait()
    return program


def generic_application():
    groups = {'monitor 1': ['odd'], 'monitor 2': [], 'monitor 3': ['odd']}
    monitors = {label: application(label, 'monitor', *names) for label, names in groups.items()}
    logger = application('logger', 'logger')
    everybody = [*monitors.values(), logger]
    for each in everybody:
        each.uid = each.expect('Running as').split()[-1]
    Program('control', 'generic_application/control.py', 'monitor', 'odd').wait()
    host = logger.uid.partition('@')[2]
    for each in monitors.values():
        for key in (each.uid, 'monitor', f'@{host}', f'monitor@{host}'):
            each.expect(f'to {key}\n')
    for key in ('monitor/rr', f'monitor@{host}/rr'):
        # One of them takes each. As a rule that is another one each time, but one that is slow is passed over.
        Program.expect_among(monitors.values(), f'to {key}\n', times=3)
    for label in ('monitor 1', 'monitor 3'):
        monitors[label].expect('to monitor#odd\n')
    logger.expect(f'to @{host}\n')
    with messaging.GenericProducer() as producer:
        producer.message_quit(_eks=[(GenericApplicationExchange, f'@{host}')])
    for each in everybody:
        each.wait()
    return 'four applications were addressed one by one, by name, by host, in turn and by group'


def missive_quickstart():
    with tempfile.TemporaryFile() as lines:
        lines.write(b'Hello\nHello\n')
        lines.seek(0)
        program = Program('missive quickstart', 'missive_quickstart/hello_processor.py', stdin=lines)
        program.expect('Hello whoever you are', times=2)
        program.wait()
    return 'two lines were greeted'


def missive_anywhere():
    greeter = Program('greeter', 'missive_anywhere/greeter.py', '0')
    url = greeter.expect('serving on').split()[-1]
    greeter.expect('consuming from')
    sender = Program('greeter sender', 'missive_anywhere/greeter_send.py', url)
    sender.expect('Hello RabbitMQ')
    sender.expect('Hello HTTP')
    sender.wait()
    greeter.end()
    return 'one processor answered over RabbitMQ and over HTTP'


def order_system():
    with tempfile.TemporaryDirectory() as directory:
        components = [receiver('pricing', 'order_system', 'pricing.py')]
        for label, script, word in (
            ('orders', 'orders.py', directory),
            ('notifier 1', 'notifier.py', 'Nora'),
            ('notifier 2', 'notifier.py', 'Nils'),
        ):
            components.append(Program(label, f'order_system/{script}', word))
            components[-1].expect('Waiting for messages')
        _, orders, *notifiers = components
        send('customer', 'order_system', 'ask_prices.py').expect('20 prices, 110 in all')
        web = Program('web', 'order_system/web.py', '0')
        url = web.expect('Serving on').split()[-1]
        office('register', 'Ada')
        orders.expect('Registered Ada')
        for item, customer in (('tea', 'Ada'), ('book', 'Bob')):
            body = json.dumps({'item': item, 'customer': customer}).encode()
            urllib.request.urlopen(f'{url}/orders', body, TIMEOUT).close()
        orders.expect('Ada has ordered tea')
        letters = f'{directory}/letters.db'
        dead_letters('list', letters).expect('no customer Bob')
        office('register', 'Bob')
        orders.expect('Registered Bob')
        dead_letters('replay', letters)
        orders.expect('Bob has ordered book')
        office('announce', 'it is late')
        for each in notifiers:
            each.expect('We are closing: it is late')
        office('quit')
        for each in components:
            each.wait()
        web.end()
    return 'a shop took orders, kept what failed, and told its notifiers'


def office(*words):
    Program(f'office {words[0]}', 'order_system/office.py', *words).wait()


def application(label, *words):
    return Program(label, 'generic_application/application.py', *words)


DEMONSTRATIONS = {
    each.__name__: each
    for each in (
        basic,
        advanced,
        rpc,
        concurrent_rpc,
        rpc_gather,
        retries,
        generic_application,
        missive_quickstart,
        missive_anywhere,
        order_system,
    )
}


def main(names):
    if unknown := [name for name in names if name not in DEMONSTRATIONS]:
        show('demo', f'there is no {unknown[0]}; there are {", ".join(DEMONSTRATIONS)}')
        return 2
    begun = time.monotonic()
    try:
        start_broker()
        seen = [DEMONSTRATIONS[name]() for name in names or DEMONSTRATIONS]
    except Missing as missing:
        show('demo', f'FAILED: {missing}')
        return 1
    finally:
        with ending:
            for program in reversed(Program.running):
                program.end()
    show('demo', f'{"; ".join(seen)} ({time.monotonic() - begun:.1f} s)')
    return 0


if __name__ == '__main__':
    ending = Ending()
    sys.exit(main(sys.argv[1:]))
