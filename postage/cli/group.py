"""Groups of commands that import a command when it is called, so that help is quick."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import click

from postage.printable import printable


class LazyGroup(click.Group):
    """A group that knows its commands by name.

    :param commands_of: name of each command → the module that has it as ``command``, or ``MODULE:ATTRIBUTE``, and a
        line on what it does, empty for one that shares the line of the command before it
    """

    def __init__(self, *args: Any, commands_of: Mapping[str, tuple[str, str]], **kwds: Any) -> None:
        super().__init__(*args, **kwds)
        self.commands_of = commands_of

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_of)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands_of:
            return None
        module, _, attribute = self.commands_of[cmd_name][0].partition(':')
        command: click.Command = getattr(importlib.import_module(module), attribute or 'command')
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: list[tuple[str, str]] = []
        for name, (_, line) in self.commands_of.items():
            if line:
                rows.append((name, line))
            else:
                rows[-1] = (f'{rows[-1][0]}, {name}', rows[-1][1])
        with formatter.section('Commands'):
            formatter.write_dl(rows, col_max=12)  # a longer one has a line of its own

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error of Postage becomes one line and exit status 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from postage.errors import PostageError  # pika comes with it, which help does without

            if isinstance(error, PostageError):
                raise click.ClickException(printable(str(error))) from error
            if not isinstance(error, OSError) or error.errno == errno.EPIPE:  # click ends a broken pipe quietly
                raise
            _give_up_output()
            raise click.ClickException(printable(f'{type(error).__name__}: {error}')) from error


def _give_up_output() -> None:
    """Where standard output takes nothing, leave what is in it: the interpreter would complain of it once more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
