"""The group of all subcommands."""

from __future__ import annotations

import click

from postage import __version__
from postage.cli.group import LazyGroup

COMMANDS = {
    'run': ('postage.cli.run.command', 'Run components as processes: workers, restarts, reloads.'),
    'probe': ('postage.cli.probe', 'Say whether running components are ready.'),
    'broker': ('postage.cli.broker', 'Run the AMQP broker in memory, for development and tests.'),
    'dead-letters': ('postage.cli.dead_letters', 'Look at messages that failed, edit them, send them back.'),
    'ps': ('postage.cli.operate.ps', 'Show the components that run.'),
    'top': ('postage.cli.operate.top', 'Show them live, sorted, with keys to pause.'),
    'describe': ('postage.cli.operate.describe', 'Show what a component is: queues, keys, handlers.'),
    'stacks': ('postage.cli.operate.stacks', 'Show where a component is, line by line.'),
    'pause': ('postage.cli.operate.commands:pause', 'Command components that run.'),
    'resume': ('postage.cli.operate.commands:resume', ''),
    'drain': ('postage.cli.operate.commands:drain', ''),
    'quit': ('postage.cli.operate.commands:quit', ''),
    'restart': ('postage.cli.operate.commands:restart', ''),
    'call': ('postage.cli.operate.call:call', 'Send an RPC request, or a command.'),
    'send': ('postage.cli.operate.call:send', ''),
    'tail': ('postage.cli.operate.tail', 'Show, and record, the messages that pass an exchange.'),
    'replay': ('postage.cli.operate.replay', 'Send recorded messages again.'),
    'topology': ('postage.cli.operate.topology', 'Show, draw and check what a program declares.'),
    'doctor': ('postage.cli.doctor', 'Say what RabbitMQ refuses or drops of what a program declares.'),
}


@click.group(cls=LazyGroup, commands_of=COMMANDS)
@click.version_option(__version__, prog_name='postage')
def postage() -> None:
    """Tools for components that talk by messages."""
