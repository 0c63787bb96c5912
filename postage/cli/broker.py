"""``postage broker``: the broker in memory, as ``python -m postage.broker`` starts it."""

from __future__ import annotations

import sys

import click

from postage.secret import Secret

NAME = 'postage broker'


@click.command(
    'broker',
    add_help_option=False,
    context_settings={'ignore_unknown_options': True, 'allow_interspersed_args': False},
)
@click.argument('arguments', nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run the AMQP broker in memory, for development and tests; --help shows its options."""
    from postage.broker.__main__ import main

    given = Secret(arguments)
    del arguments  # there may be a password
    sys.exit(main(given.reveal(), NAME))
