"""The command ``postage run``."""

from __future__ import annotations

import contextlib
import logging
import signal
from typing import Any

import click

from postage.cli.components import check_targets
from postage.cli.run import logs
from postage.cli.run.options import Options, of_project
from postage.errors import ConfigurationError

PREFIX = 'POSTAGE_RUN'


class RunCommand(click.Command):
    """A command whose options may also stand in ``pyproject.toml``."""

    def make_context(self, *args: Any, **kwds: Any) -> click.Context:
        known = [parameter.name for parameter in self.params if parameter.name and parameter.name != 'help']
        kwds['default_map'] = of_project(known)
        return super().make_context(*args, **kwds)


@click.command('run', cls=RunCommand, context_settings={'auto_envvar_prefix': PREFIX})
@click.argument('components', nargs=-1, metavar='MODULE:NAME...', envvar=f'{PREFIX}_COMPONENTS')
@click.option('--workers', type=click.IntRange(1), default=1, show_default=True, help='Processes that run all of it.')
@click.option('--concurrency', type=click.IntRange(1), help='Messages that each processor handles at the same time.')
@click.option(
    '--grace', type=click.FloatRange(0.0), default=30.0, show_default=True, help='Seconds for what is in hand to end.'
)
@click.option('--reload', is_flag=True, help='Replace the workers when a source changes (needs postage[run]).')
@click.option(
    '--reload-dir', 'reload_dirs', multiple=True, default=['.'], metavar='DIR', help='Where they are; may be repeated.'
)
@click.option('--log-format', type=click.Choice(['text', 'json']), default='text', show_default=True)
@click.option(
    '--log-level', type=click.Choice(['debug', 'info', 'warning', 'error']), default='info', show_default=True
)
@click.option('--status', metavar='HOST:PORT', help='Serve /live, /ready and /metrics there.')
@click.option(
    '--confirm-time',
    type=click.FloatRange(0.1),
    default=30.0,
    show_default=True,
    help='Seconds unconfirmed after which it is not ready.',
)
@click.option(
    '--handler-time', type=click.FloatRange(0.1), help="The same, in hand; by default the handlers' time-outs alone."
)
@click.pass_context
def command(ctx: click.Context, /, components: tuple[str, ...], **given: Any) -> None:
    """Run processors, applications, or what functions return that make some.

    SIGTERM and Ctrl-C end it in good order within the grace, and told again at once; SIGHUP replaces the workers, each
    when its replacement consumes. Every option is also a variable, such as POSTAGE_RUN_WORKERS, and a key of
    [tool.postage] in pyproject.toml.

    Exit status: 0 if all ended well, 1 if it could not begin, 2 if it was called wrongly, 3 if something in hand was
    interrupted.
    """
    from postage.cli.run.reload import watch
    from postage.cli.run.status import StatusServer
    from postage.cli.run.supervisor import Supervisor

    options = _checked(components, given)
    logs.configure(options.log_format, options.log_level)
    supervisor = Supervisor(options)
    with contextlib.ExitStack() as stack:
        if options.reload:
            changed = supervisor.replace_all
            stack.callback(watch(options.reload_dirs, lambda what: supervisor.call_soon(lambda: changed(what))))
        if options.status is not None:
            server = StatusServer(options.status, supervisor.reports)
            stack.callback(server.close)
            logging.getLogger('postage.run').info('status at %s/ready', server.url)
        ctx.exit(supervisor.run())


def _checked(components: tuple[str, ...], given: dict[str, Any]) -> Options:
    if not hasattr(signal, 'SIGHUP'):
        raise ConfigurationError('postage run needs POSIX: signals, and sockets that child processes inherit')
    try:
        check_targets(components)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if not components:
        raise click.UsageError(f'name what to run: MODULE:NAME, {PREFIX}_COMPONENTS, or "components" in pyproject.toml')
    return Options(components, **{**given, 'reload_dirs': tuple(given['reload_dirs'])})
