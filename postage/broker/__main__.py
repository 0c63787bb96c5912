"""``python -m postage.broker``: the embedded broker as a command."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence

from postage.broker.limits import GIB, Limits, size_of
from postage.broker.rules import DEFAULT, FEATURES, RULES
from postage.broker.server import BrokerServer
from postage.printable import printable
from postage.secret import Secret, secret_of_file

COMMAND = 'python -m postage.broker'

_TAKEN = (
    '. A broker that runs there already will do; for another one give --port 5673, and its programs '
    'POSTAGE_URL=amqp://guest:guest@localhost:5673/'
)


def parser_of(command: str = COMMAND) -> argparse.ArgumentParser:
    """What reads the arguments.

    :param command: how it is called, for its usage
    """
    parser = argparse.ArgumentParser(
        prog=command,
        description='An AMQP 0-9-1 broker in memory, for development and tests. Production is RabbitMQ.',
    )
    parser.add_argument('--host', default='127.0.0.1', help='address or name to listen on (default: %(default)s)')
    parser.add_argument('--port', type=int, default=5672, help='0 for any free port (default: %(default)s)')
    parser.add_argument('--user', default='guest', help='name of the one user (default: %(default)s)')
    parser.add_argument(
        '--password',
        type=Secret,
        help="that user's password (default: that of --password-file, else of POSTAGE_BROKER_PASSWORD, else guest); "
        'other users of this machine can see the arguments of a command',
    )
    parser.add_argument('--password-file', metavar='FILE', help='take it from the first line of this file')
    parser.add_argument('--vhost', action='append', metavar='NAME', help='a virtual host; may be repeated (default: /)')
    which = 'the version of RabbitMQ to behave as (default: %(default)s)'
    parser.add_argument('--rules', choices=list(RULES), default=DEFAULT, help=which)
    for name, does in (
        ('--permit', 'permit what is denied by default'),
        ('--deny', 'deny what is permitted by default'),
    ):
        what = f'{does}: a deprecated feature of RabbitMQ 4; may be repeated'
        parser.add_argument(name, action='append', choices=FEATURES, default=[], help=what)
    for field in dataclasses.fields(Limits):
        is_size = field.default is None or field.default == GIB
        default = '' if is_size else ' (default: %(default)s)'
        parser.add_argument(
            f'--max-{field.name.replace("_", "-")}',
            type=_size if is_size else int,
            default=field.default,
            metavar='SIZE' if is_size else 'NUMBER',
            help=f'at most so many {field.metadata["what"]}{default}',
        )
    parser.add_argument('--tls-certificate', metavar='FILE', help='serve TLS with this certificate chain (PEM)')
    parser.add_argument('--tls-key', metavar='FILE', help='its private key, where that is a file of its own')
    parser.add_argument('--verbose', action='store_true', help='a line per connection, declaration and message')
    return parser


def main(arguments: Sequence[str] | None = None, command: str = COMMAND) -> int:
    """Run the broker until SIGTERM or SIGINT. Blocks.

    :param arguments: those behind the command; by default the program's own
    :param command: how it was called, for its usage
    :return: the exit status: 0 after one of these signals, 1 where it cannot begin
    """
    options = parser_of(command).parse_args(arguments)
    del arguments  # there may be a password
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format='%(asctime)s %(message)s' if options.verbose else '%(asctime)s %(levelname)s %(message)s',
        stream=sys.stderr,
    )
    try:
        tls = _tls(options.tls_certificate, options.tls_key)
    except OSError as error:
        return _failed(f'cannot use the certificate {options.tls_certificate}: {error.strerror or error}')
    password = _password(options)
    if isinstance(password, str):
        return _failed(f'cannot read the password from {options.password_file}: {password}')
    hosts = options.vhost or ['/']
    try:
        server = BrokerServer(
            options.host,
            options.port,
            {options.user: password},
            hosts,
            rules=options.rules,
            permit=options.permit,
            deny=options.deny,
            tls=tls,
            limits=Limits(
                **{field.name: getattr(options, f'max_{field.name}') for field in dataclasses.fields(Limits)}
            ),
        )
    except ValueError as error:
        return _failed(str(error))
    try:
        server.listen()
    except (OSError, OverflowError) as error:
        reason = getattr(error, 'strerror', None) or error
        taken = _TAKEN if getattr(error, 'errno', None) == errno.EADDRINUSE else ''
        return _failed(f'cannot listen on {options.host}:{options.port}: {reason}{taken}')
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.request_stop())
    address = f'{server.scheme}://{options.user}@{server.address}/'
    sys.stdout.write(f'Postage broker, for development and tests: {printable(address)}\n')
    sys.stdout.flush()
    server.serve_forever()
    return 0


def _password(options: argparse.Namespace) -> Secret[str] | str:
    """The password of the one user, or why it cannot be read."""
    if options.password is not None:
        password: Secret[str] = options.password
        return password
    if options.password_file is not None:
        return secret_of_file(options.password_file)
    return Secret(os.environ.get('POSTAGE_BROKER_PASSWORD') or 'guest')


def _limits(options: argparse.Namespace) -> Limits:
    names = [field.name for field in dataclasses.fields(Limits)]
    return Limits(**{name: getattr(options, f'max_{name}') for name in names})


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def _failed(reason: str) -> int:
    sys.stderr.write(f'postage broker: {printable(reason)}\n')
    return 1


if __name__ == '__main__':
    sys.exit(main())
