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
    'doctor': ('postage.cli.doctor', 'Say what RabbitMQ refuses or drops of what a program declares.'),
}


@click.group(cls=LazyGroup, commands_of=COMMANDS)
@click.version_option(__version__, prog_name='postage')
def postage() -> None:
    """Tools for components that talk by messages."""
