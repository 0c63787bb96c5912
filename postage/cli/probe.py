"""``postage probe``: asks a running ``postage run --status`` how it is, for probes that run a command."""

from __future__ import annotations

import http.client
import json

import click

from postage.cli.malformed import MALFORMED
from postage.cli.numbers import Number
from postage.cli.run.options import of_project
from postage.cli.run.status import address_of
from postage.errors import ConfigurationError
from postage.printable import printable

SILENT = 3


@click.command('probe')
@click.option('--status', envvar='POSTAGE_RUN_STATUS', metavar='HOST:PORT', help='Where it listens.')
@click.option('--live', 'path', flag_value='/live', help='Whether it runs at all.')
@click.option('--ready', 'path', flag_value='/ready', default='/ready', help='Whether all is well (the default).')
@click.option('--timeout', type=Number(0.1), default=3.0, show_default=True, help='Seconds to wait.')
@click.option('--json', 'as_data', is_flag=True, help='Print the answer as it came.')
@click.pass_context
def command(ctx: click.Context, /, status: str | None, path: str, timeout: float, as_data: bool) -> None:
    """Ask a running postage run whether it is ready.

    Where it listens is what --status of postage run said: the option, POSTAGE_RUN_STATUS, or [tool.postage].

    Exit status: 0 if it is, 1 if not, which is said; 2 if it was called wrongly, 3 if there was no answer.
    """
    status = status or of_project().get('status')
    if not status:
        raise click.UsageError('--status HOST:PORT, or POSTAGE_RUN_STATUS, says where postage run listens')
    try:
        host, port = address_of(status)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    if host in ('0.0.0.0', '::', ''):
        host = 'localhost'
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request('GET', path)
        response = connection.getresponse()
        body = json.loads(response.read(1_000_000))
        faults = [str(fault) for fault in body.get('faults', [])]
    except (OSError, http.client.HTTPException, *MALFORMED) as error:
        click.echo(printable(f'no answer from {status}: {error}'), err=True)
        ctx.exit(SILENT)
    finally:
        connection.close()
    if as_data:
        from postage.cli.output import print_json  # here: a probe comes every few seconds

        print_json(body)
    else:
        for fault in faults:
            click.echo(printable(fault))
    ctx.exit(0 if response.status == 200 else 1)
