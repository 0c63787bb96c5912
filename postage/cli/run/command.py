"""The command ``postage run``."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterable
from typing import Any

import click
from click.core import ParameterSource

from postage.cli.components import check_targets
from postage.cli.numbers import Number
from postage.cli.run import logs
from postage.cli.run.options import PROJECT, SECTION, Options, of_project
from postage.cli.run.status import StatusServer, address_of
from postage.errors import ConfigurationError, PostageError

logger = logging.getLogger('postage.run')

PREFIX = 'POSTAGE_RUN'


class RunCommand(click.Command):
    """A command whose options may also stand in ``pyproject.toml``."""

    def make_context(self, *args: Any, **kwds: Any) -> click.Context:
        known = [parameter.name for parameter in self.params if parameter.name and parameter.name != 'help']
        kwds['default_map'] = of_project(known)
        try:
            return super().make_context(*args, **kwds)
        except click.BadParameter as error:
            error.param_hint = _where(error) or error.param_hint
            raise


def _where(error: click.BadParameter) -> str | None:
    """Where a value stands that is no option's."""
    if error.param is None or error.param.name is None or error.ctx is None:
        return None
    name = error.param.name
    source = error.ctx.get_parameter_source(name)
    if source is ParameterSource.ENVIRONMENT:
        return f'{PREFIX}_{name.upper()}'
    return f'{PROJECT}: [{SECTION}] {name.replace("_", "-")}' if source is ParameterSource.DEFAULT_MAP else None


@click.command('run', cls=RunCommand, context_settings={'auto_envvar_prefix': PREFIX})
@click.argument('components', nargs=-1, metavar='MODULE:NAME...', envvar=f'{PREFIX}_COMPONENTS')
@click.option('--workers', type=click.IntRange(1), default=1, show_default=True, help='Processes that run all of it.')
@click.option('--concurrency', type=click.IntRange(1), help='Messages that each processor handles at the same time.')
@click.option('--grace', type=Number(0.0), default=30.0, show_default=True, help='Seconds for what is in hand to end.')
@click.option('--reload', is_flag=True, help='Replace the workers when a source changes (needs postage[run]).')
@click.option(
    '--reload-dir',
    'reload_dir',
    type=click.Path(exists=True, file_okay=False),
    multiple=True,
    default=['.'],
    metavar='DIR',
    help='Where they are; may be repeated.',
)
@click.option('--log-format', type=click.Choice(['text', 'json']), default='text', show_default=True)
@click.option(
    '--log-level', type=click.Choice(['debug', 'info', 'warning', 'error']), default='info', show_default=True
)
@click.option('--status', metavar='HOST:PORT', help='Serve /live, /ready and /metrics there.')
@click.option(
    '--confirm-time',
    type=Number(0.1),
    default=30.0,
    show_default=True,
    help='Seconds unconfirmed after which it is not ready.',
)
@click.option('--handler-time', type=Number(0.1), help="The same, in hand; by default the handlers' time-outs alone.")
@click.pass_context
def command(ctx: click.Context, /, components: tuple[str, ...], **given: Any) -> None:
    """Run processors, applications, or what functions return that make some.

    SIGTERM and Ctrl-C end it in good order within the grace, and told again at once; SIGHUP replaces the workers, each
    when its replacement consumes. Every option is also a variable, such as POSTAGE_RUN_WORKERS, and a key of
    [tool.postage] in pyproject.toml.

    Exit status: 0 if all ended well, 1 if it could not begin, 2 if it was called wrongly, 3 if something in hand was
    interrupted.
    """
    options = _checked(components, given)
    logs.configure(options.log_format, options.log_level)
    _warn_of_variables(ctx.command.params)
    try:
        ctx.exit(_run(options))
    except PostageError as error:
        if options.log_format != 'json':
            raise
        logger.critical('%s', error)  # an object, too, as all that is said
        ctx.exit(1)


def _run(options: Options) -> int:
    from postage.cli.run.reload import watch
    from postage.cli.run.supervisor import Supervisor

    supervisor = Supervisor(options)
    with contextlib.ExitStack() as stack:
        if options.reload:
            changed = supervisor.replace_all
            stack.callback(watch(options.reload_dirs, lambda what: supervisor.call_soon(lambda: changed(what))))
        if options.status is not None:
            server = StatusServer(options.status, supervisor.reports)
            stack.callback(server.close)
            logger.info('status at %s/ready', server.url)
        return supervisor.run()


def _warn_of_variables(parameters: Iterable[click.Parameter]) -> None:
    """A variable that means nothing is a slip."""
    known = {f'{PREFIX}_{parameter.name}'.upper() for parameter in parameters}
    for name in sorted(name for name in os.environ if name.startswith(f'{PREFIX}_') and name not in known):
        logger.warning('%s means nothing; there are %s', name, ', '.join(sorted(known)))


def _checked(components: tuple[str, ...], given: dict[str, Any]) -> Options:
    if not hasattr(signal, 'SIGHUP'):
        raise ConfigurationError('postage run needs POSIX: signals, and sockets that child processes inherit')
    try:
        check_targets(components)
        if given['status'] is not None:
            address_of(given['status'])
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if not components:
        raise click.UsageError(f'name what to run: MODULE:NAME, {PREFIX}_COMPONENTS, or "components" in pyproject.toml')
    return Options(components, reload_dirs=tuple(given.pop('reload_dir')), **given)
