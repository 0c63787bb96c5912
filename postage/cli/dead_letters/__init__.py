"""``postage dead-letters``: a module per subcommand, and what they share in ``common.py``."""

from __future__ import annotations

import click

from postage.cli.group import LazyGroup

COMMANDS = {
    'list': ('postage.cli.dead_letters.list', 'List letters, or count them by what they have in common.'),
    'show': ('postage.cli.dead_letters.show', 'Show one letter, whole.'),
    'replay': ('postage.cli.dead_letters.replay', 'Send letters back to where they came from.'),
    'edit': ('postage.cli.dead_letters.edit', "Change a letter's body, or where it goes."),
    'export': ('postage.cli.dead_letters.export', 'Write letters as JSON, one a line.'),
    'purge': ('postage.cli.dead_letters.purge', 'Delete letters.'),
}


@click.group('dead-letters', cls=LazyGroup, commands_of=COMMANDS)
def command() -> None:
    """Messages that no handler could handle, and that a processor put into its store.

    A store is a file (--store PATH) or a queue (--queue NAME) on the broker that POSTAGE_URL, or POSTAGE_HOST and
    its kin, lead to. The letters of a queue are held while they are read: others do not see them meanwhile.

    Exit status: 0 if all went well, 1 if something failed, 2 if a command was called wrongly.
    """
