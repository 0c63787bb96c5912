"""Which broker to talk to, and how: environment and HUP become one frozen :class:`BrokerSettings`.

Nothing is read at import. :func:`broker_settings` reads the environment each time it is called, so that a
program may set a variable, or ``messaging.global_vhost`` and its kin, at any time before it connects.

Each field comes from the first of these that names it:

1. the argument, 2. the class attribute, 3. what the program set on :mod:`postage.messaging` at run time,
4. ``POSTAGE_URL``, 5. the other variables, 6. the defaults of a bare RabbitMQ.

Host, port, encryption and query parameters of a URL belong together: where the hosts come from a higher
source, only the URL's user, password and virtual host still count.

No error raised here contains a password, nor any text that may be a piece of one. That is why messages
about URLs describe the fault instead of quoting the URL, and why no error has another one as its context: the frames
of that one hold the text. Ours hold it as a :class:`postage.secret.Secret`.
"""

from __future__ import annotations

import enum
import functools
import logging
import math
import os
import re
import ssl
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import pika
import pika.connection
import pika.credentials

from postage.errors import ConfigurationError
from postage.secret import Secret, revealed, secret_of_file

DEFAULT_HOST = 'localhost'
DEFAULT_PORT = 5672
DEFAULT_TLS_PORT = 5671
DEFAULT_VHOST = '/'
DEFAULT_USER = 'guest'
DEFAULT_PASSWORD = 'guest'
DEFAULT_CONNECT_TIMEOUT = 60.0
DEFAULT_CLOCK_TOLERANCE = 0.5  # seconds
DEFAULT_MAX_BODY = 128 * 1024 * 1024  # bytes: what RabbitMQ 3 allows, and eight times what RabbitMQ 4 does


class Variable(NamedTuple):
    """A variable of the environment: what the table of ``docs/reference/settings.rst`` is made of.

    :ivar name: its name
    :ivar meaning: what it says, in reStructuredText
    :ivar default: what counts without it
    :ivar elsewhere: how a program says the same, in reStructuredText
    """

    name: str
    meaning: str
    default: str
    elsewhere: str = ''


VARIABLES = (
    Variable(
        'POSTAGE_HOST',
        'host of the broker, or several separated by commas, tried in turn',
        DEFAULT_HOST,
        "``hup={'host': …}``",
    ),
    Variable('POSTAGE_PORT', 'its port', f'{DEFAULT_PORT}, for TLS {DEFAULT_TLS_PORT}', "``hup={'port': …}``"),
    Variable('POSTAGE_VHOST', 'virtual host', DEFAULT_VHOST, '``vhost``, ``messaging.global_vhost``'),
    Variable('POSTAGE_USER', 'user', DEFAULT_USER, "``hup={'user': …}``, ``messaging.global_user``"),
    Variable(
        'POSTAGE_PASSWORD', 'password', DEFAULT_PASSWORD, "``hup={'password': …}``, ``messaging.global_password``"
    ),
    Variable(
        'POSTAGE_PASSWORD_FILE',
        'a file whose first line is the password, where ``POSTAGE_PASSWORD`` is not set',
        'none',
    ),
    Variable(
        'POSTAGE_SIGNING_KEYS',
        'keys that messages are signed with, and have to be: see :doc:`/signing`',
        'none',
        '``signing_keys``',
    ),
    Variable(
        'POSTAGE_SIGNING_KEYS_FILE',
        'a file of mode 0600 with these keys, where ``POSTAGE_SIGNING_KEYS`` is not set',
        'none',
    ),
    Variable(
        'POSTAGE_URL',
        'all of these in one, ``amqp://`` or ``amqps://``; or several separated by commas. The query parameters of '
        'pika, such as ``heartbeat``, count',
        'none',
        '``hup=URL``',
    ),
    Variable('POSTAGE_CONNECT_TIMEOUT', 'seconds to wait for a broker that is down', f'{DEFAULT_CONNECT_TIMEOUT:g}'),
    Variable(
        'POSTAGE_MAX_BODY',
        'bytes that the body of a message may have; a larger one is not read, and rejected',
        str(DEFAULT_MAX_BODY),
    ),
    Variable(
        'POSTAGE_CLOCK_TOLERANCE',
        'seconds by which the clocks of two machines may differ: an RPC request is dropped unhandled only when its '
        'deadline has passed by that much',
        f'{DEFAULT_CLOCK_TOLERANCE:g}',
    ),
    Variable(
        'POSTAGE_DEBUG_MODE',
        '``true``: log every declaration, message and delivery',
        'off',
        '``messaging.debug_mode = True``',
    ),
    Variable(
        'POSTAGE_FAST_LANE',
        'how bytes are moved, to find out whether a fault lies there: ``direct`` (the thread that publishes sends, the '
        'one that waits reads), or ``thread`` (the I/O thread does both, as it always does with TLS, and elsewhere '
        'than on Linux)',
        'direct',
    ),
    Variable('POSTAGE_RMQ_USER', 'the name of ``POSTAGE_USER`` in old versions; a ``DeprecationWarning``', 'none'),
    Variable('POSTAGE_RMQ_PASSWORD', 'likewise that of ``POSTAGE_PASSWORD``', 'none'),
    Variable(
        'POSTAGE_RUN_WORKERS',
        'the option ``--workers`` of ``postage run``; each of its options has such a variable',
        '1',
        '``--workers``',
    ),
    Variable(
        'POSTAGE_MANAGEMENT',
        "URL of RabbitMQ's management API, which ``postage topology --check`` asks for the bindings",
        'none',
        '``--management``',
    ),
    Variable(
        'POSTAGE_BROKER_PASSWORD', 'the password that ``postage broker`` asks for', 'guest', '``--password-file``'
    ),
)
"""Every variable that a user may set; a test holds that none is missing."""

C = TypeVar('C')

Hup = Mapping[str, Any] | str | Secret[Any]
"""Host, user and password: a dictionary with some of :data:`HUP_KEYS`, or AMQP URLs; either may be a secret."""
HUP_KEYS = ('host', 'user', 'password', 'port', 'ssl', 'mechanism')

PLAIN, EXTERNAL = 'PLAIN', 'EXTERNAL'  # SASL mechanisms: a password; the certificate of this program
MECHANISMS = (PLAIN, EXTERNAL)

# A short string of AMQP 0-9-1 (section 4.2.5.3): the names of virtual hosts, exchanges and queues.
SHORT_STRING_BYTES = 255
HEARTBEAT_MAX = 65535  # seconds
CHANNELS_NEEDED = 4

_logger = logging.getLogger('postage')

# Whether each message is logged. Asked for with each message, so it is no function.
is_debugging = False


# What the rest of Postage sees


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One host to try, with what pika needs to know about the way there.

    :ivar host: name or address, IPv6 without brackets
    :ivar port: 1 to 65535
    :ivar ssl_options: how to encrypt; ``None`` for plain text
    :ivar options: the URL's query parameters as pairs of name and text, such as ``('heartbeat', '30')``
    """

    host: str
    port: int
    ssl_options: pika.SSLOptions | None = None
    options: tuple[tuple[str, str], ...] = ()

    def _key(self) -> tuple[object, ...]:
        # pika's SSLOptions compare by identity; two that share a context lead to the same broker.
        encryption = self.ssl_options and (self.ssl_options.context, self.ssl_options.server_hostname)
        return self.host, self.port, encryption, self.options

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Endpoint) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'{host}:{self.port}'


class FastLane(enum.Enum):
    """How bytes are moved beside pika's own codec. The first is the faster one, and both are equally safe.

    ``POSTAGE_FAST_LANE`` chooses one, to find out whether a fault lies here. With TLS, and elsewhere than on Linux, the
    connection's own thread does it all, whatever was chosen.
    """

    DIRECT = 'direct'  # the thread that publishes sends, the one that waits reads
    THREAD = 'thread'  # the connection's own thread does both


def fast_lane() -> FastLane:
    """Return what ``POSTAGE_FAST_LANE`` asks for, ``direct`` by default.

    :raises ConfigurationError: it names none that there is
    """
    name = os.environ.get('POSTAGE_FAST_LANE') or FastLane.DIRECT.value
    try:
        return FastLane(name)
    except ValueError:
        choices = ', '.join(lane.value for lane in FastLane)
        raise ConfigurationError(f'POSTAGE_FAST_LANE is {name!r:.40}, and may be one of {choices}') from None


@dataclass(frozen=True)
class BrokerSettings:
    """A broker and the credentials for it.

    Connections are shared under it: settings of one broker and the same credentials are equal, whatever
    their ``connect_timeout``, and hash alike.

    :ivar endpoints: the hosts, in the order in which to try them
    :ivar vhost: the virtual host
    :ivar user: the user name
    :ivar password: the password, a :class:`Secret`; one that is given as text becomes one
    :ivar connect_timeout: seconds that a constructor waits for a broker that is down
    :ivar mechanism: ``'PLAIN'``, or ``'EXTERNAL'`` where the certificate of this program says who it is
    :ivar max_body: bytes that the body of a message may have that comes from the broker
    """

    endpoints: tuple[Endpoint, ...]
    vhost: str
    user: str
    password: Secret[str]
    connect_timeout: float = field(default=DEFAULT_CONNECT_TIMEOUT, compare=False)
    max_body: int = field(default=DEFAULT_MAX_BODY, compare=False)
    mechanism: str = PLAIN

    def __post_init__(self) -> None:
        object.__setattr__(self, 'password', Secret.of(self.password))

    def parameters(self) -> tuple[pika.connection.Parameters, ...]:
        """Return pika's connection parameters, new objects, one per endpoint in order.

        ``connection_attempts`` is 1 in each of them, whatever a URL says: Postage tries again by itself.
        """
        return tuple(self._parameters(endpoint) for endpoint in self.endpoints)

    def _parameters(self, endpoint: Endpoint) -> pika.connection.Parameters:
        parameters = _pika_parameters(endpoint.options)
        parameters.host = endpoint.host
        parameters.port = endpoint.port
        parameters.ssl_options = endpoint.ssl_options
        parameters.virtual_host = self.vhost
        if self.mechanism == EXTERNAL:
            parameters.credentials = pika.credentials.ExternalCredentials()
        else:
            parameters.credentials = pika.PlainCredentials(self.user, self.password.reveal())
        parameters.connection_attempts = 1
        return parameters

    def __str__(self) -> str:
        scheme = 'amqps' if any(endpoint.ssl_options for endpoint in self.endpoints) else 'amqp'
        hosts = ','.join(map(str, self.endpoints))
        user = '' if self.mechanism == EXTERNAL else f'{quote(self.user, safe="")}@'
        return f'{scheme}://{user}{hosts}/{quote(self.vhost, safe="")}'


def broker_settings(
    hup: Hup | None = None,
    vhost: str | None = None,
    *,
    class_hup: Hup | None = None,
    class_vhost: str | None = None,
    program: Mapping[str, Any] | Secret[Any] | None = None,
    environ: Mapping[str, str] | Secret[Any] | None = None,
) -> BrokerSettings:
    """Return the broker to talk to, each field from the first source that names it.

    A HUP is ``{'host': …, 'user': …, 'password': …}``, with optional ``'port'``, ``'ssl'`` (``True``, an
    ``ssl.SSLContext`` or ``pika.SSLOptions``) and ``'mechanism'`` (``'EXTERNAL'`` in place of a password), or an AMQP
    URL (https://www.rabbitmq.com/docs/uri-spec), or several URLs separated by commas. A HUP's host may be a
    comma-separated list. What it leaves out comes from the next source. Variables that are set but empty
    count as absent.

    Each argument may be a :class:`Secret`, too.

    :param hup: the HUP given to a constructor
    :param vhost: the virtual host given to a constructor
    :param class_hup: the HUP of the class
    :param class_vhost: the virtual host of the class
    :param program: ``global_hup``, ``global_vhost``, ``global_user`` and ``global_password``, where set
    :param environ: the environment, ``os.environ`` by default
    :raises ConfigurationError: where a source is malformed, even if another one takes precedence; it names the source
    """
    hup, class_hup, program = Secret.of(hup), Secret.of(class_hup), Secret.of(program)
    environ = Secret.of(os.environ if environ is None else environ)
    sources = _sources(hup, vhost, class_hup, class_vhost, program, environ)
    endpoints = _endpoints(sources)
    mechanism = next((source.mechanism for source in sources if source.mechanism is not None), PLAIN)
    if mechanism == EXTERNAL and not all(endpoint.ssl_options for endpoint in endpoints):
        raise ConfigurationError(
            "the mechanism 'EXTERNAL' needs TLS, with a certificate of this program: amqps, or ssl"
        )
    return BrokerSettings(
        endpoints=endpoints,
        mechanism=mechanism,
        vhost=_named(sources, 'vhost'),
        user=_named(sources, 'user'),
        password=_named(sources, 'password'),
        connect_timeout=_seconds(environ, 'POSTAGE_CONNECT_TIMEOUT', DEFAULT_CONNECT_TIMEOUT),
        max_body=_max_body(environ.reveal().get('POSTAGE_MAX_BODY')),
    )


def default_vhost(program: Mapping[str, Any] | Secret[Any] | None = None) -> str:
    """Return the virtual host where neither an argument nor a class names one: what a bare fingerprint has.

    :param program: as for :func:`broker_settings`
    :raises ConfigurationError: where a source is malformed
    """
    program = Secret.of(program)
    vhost: str = _named(_sources(None, None, None, None, program, Secret(os.environ)), 'vhost')
    return vhost


def debug_mode(program: Mapping[str, Any] | Secret[Any] | None = None) -> bool:
    """Return whether ``POSTAGE_DEBUG_MODE`` is ``true`` or the program set ``messaging.debug_mode``.

    :param program: ``debug_mode``, where set
    """
    program = Secret.of(program or {})
    asked_by_environment = os.environ.get('POSTAGE_DEBUG_MODE', '').strip().lower() == 'true'
    return asked_by_environment or bool(program.reveal().get('debug_mode'))


def clock_tolerance() -> float:
    """Return by how many seconds the clocks of two machines may differ: ``POSTAGE_CLOCK_TOLERANCE``.

    :raises ConfigurationError: it is no such number
    """
    return _seconds(Secret(os.environ), 'POSTAGE_CLOCK_TOLERANCE', DEFAULT_CLOCK_TOLERANCE)


def apply_debug_mode(enabled: bool) -> None:
    """Let the logger ``postage`` through at DEBUG, to stderr where the program configured no logging.

    May be called any number of times, from any thread; ``False`` ends the logging of each message, and no more.
    """
    global is_debugging
    is_debugging = enabled
    if not enabled:
        return
    with _debug_lock:
        _logger.setLevel(logging.DEBUG)
        if _logger.handlers or logging.getLogger().handlers:
            return
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(name)s: %(message)s'))
        # A program that configures logging later on would otherwise see every line twice.
        handler.addFilter(lambda record: not logging.getLogger().handlers)
        _logger.addHandler(handler)


# Sources, each of which may name some of the fields


class _Host(NamedTuple):
    """A host as a source names it; ``None`` where the source leaves it open."""

    name: str
    port: int | None = None
    tls: pika.SSLOptions | Literal[False] | None = None
    options: tuple[tuple[str, str], ...] = ()


class _Source(NamedTuple):
    """What one source says; ``None`` and no hosts stand for silence."""

    hosts: tuple[_Host, ...] = ()
    port: int | None = None
    tls: pika.SSLOptions | Literal[False] | None = None
    vhost: str | None = None
    user: str | None = None
    password: Secret[str] | None = None
    mechanism: str | None = None
    deprecated: frozenset[str] = frozenset()


_DEFAULTS = _Source(
    hosts=(_Host(DEFAULT_HOST),), vhost=DEFAULT_VHOST, user=DEFAULT_USER, password=Secret(DEFAULT_PASSWORD)
)


def _sources(
    hup: Secret[object] | None,
    vhost: object,
    class_hup: Secret[object] | None,
    class_vhost: object,
    program: Secret[Mapping[str, Any]] | None,
    environ: Secret[Mapping[str, str]],
) -> tuple[_Source, ...]:
    """Return every source in order of precedence, the defaults last."""
    return (
        _from_pair('the argument', hup, vhost),
        _from_pair('the class attribute', class_hup, class_vhost),
        _from_program(program or Secret({})),
        _from_hup('POSTAGE_URL', _variable(environ, 'POSTAGE_URL')),
        _from_variables(environ),
        _DEFAULTS,
    )


def _named(sources: Sequence[_Source], name: Literal['vhost', 'user', 'password']) -> Any:
    """Return the field from the first source that names it, which the defaults do at the latest."""
    for source in sources:
        value = getattr(source, name)
        if value is not None:
            break
    if name in source.deprecated:
        old, new = f'POSTAGE_RMQ_{name.upper()}', f'POSTAGE_{name.upper()}'
        warnings.warn(f'{old} is deprecated, set {new} instead', DeprecationWarning, stacklevel=4)
    return value


def _endpoints(sources: Sequence[_Source]) -> tuple[Endpoint, ...]:
    """Return the first source's hosts, completed by what the other sources say about port and encryption."""
    named = next(index for index, source in enumerate(sources) if source.hosts)
    above, below = sources[:named], sources[named:]
    endpoints = []
    for host in sources[named].hosts:
        tls = _first([source.tls for source in above] + [host.tls] + [source.tls for source in below])
        port = _first([source.port for source in above] + [host.port] + [source.port for source in below])
        endpoints.append(
            Endpoint(
                host=host.name,
                port=port or (DEFAULT_TLS_PORT if tls else DEFAULT_PORT),
                ssl_options=tls or None,
                options=host.options,
            )
        )
    return tuple(endpoints)


def _first(values: Sequence[Any]) -> Any:
    """Return the first value that is not ``None``, or ``None``."""
    return next((value for value in values if value is not None), None)


def _from_pair(where: str, hup: Secret[object] | None, vhost: object) -> _Source:
    source = _from_hup(f'{where} hup', hup)
    return source if vhost is None else source._replace(vhost=_vhost(f'{where} vhost', Secret.of(vhost)))


def _from_program(program: Secret[Mapping[str, Any]]) -> _Source:
    source = _from_hup('messaging.global_hup', _entry(program, 'global_hup'))
    checks: dict[str, Callable[..., Any]] = {'vhost': _vhost, 'user': _text, 'password': _utf8}
    own = {name: check(f'messaging.global_{name}', _entry(program, f'global_{name}')) for name, check in checks.items()}
    return source._replace(**{name: value for name, value in own.items() if value is not None})


def _from_hup(where: str, hup: Secret[Any] | None) -> _Source:
    if hup is None:
        return _Source()
    if isinstance(hup.reveal(), str):
        return _from_urls(where, hup)
    if isinstance(hup.reveal(), Mapping):
        return _from_mapping(where, hup)
    raise ConfigurationError(
        f"{where} must be a dictionary with 'host', 'user' and 'password', or an AMQP URL, "
        f'not {type(hup.reveal()).__name__}'
    )


def _from_mapping(where: str, hup: Secret[Mapping[str, Any]]) -> _Source:
    unknown = [key for key in hup.reveal() if key not in HUP_KEYS]
    if unknown:
        raise ConfigurationError(
            f'{where} has the unknown key {unknown[0]!r}; a HUP has the keys {", ".join(HUP_KEYS)}'
        )

    def read(key: str, check: Callable[[str, Any], C]) -> C:
        return check(f'{where}[{key!r}]', _entry(hup, key))

    return _Source(
        hosts=read('host', _hosts),
        port=read('port', _port),
        tls=read('ssl', _tls),
        user=read('user', _text),
        password=read('password', _utf8),
        mechanism=read('mechanism', _mechanism),
    )


def _from_variables(environ: Secret[Mapping[str, str]]) -> _Source:
    user, password = _variable(environ, 'POSTAGE_USER'), _variable(environ, 'POSTAGE_PASSWORD')
    password = password or _password_of_file(environ.reveal().get('POSTAGE_PASSWORD_FILE'))
    older = {name: _variable(environ, f'POSTAGE_RMQ_{name.upper()}') for name in ('user', 'password')}
    return _Source(
        hosts=_hosts('POSTAGE_HOST', _variable(environ, 'POSTAGE_HOST')),
        port=_port('POSTAGE_PORT', _variable(environ, 'POSTAGE_PORT')),
        vhost=_vhost('POSTAGE_VHOST', _variable(environ, 'POSTAGE_VHOST')),
        user=_text('POSTAGE_USER', user or older['user']),
        password=_utf8('POSTAGE_PASSWORD', password or older['password']),
        deprecated=frozenset(
            name for name, newer in (('user', user), ('password', password)) if older[name] and not newer
        ),
    )


def _variable(environ: Secret[Mapping[str, str]], name: str) -> Any:
    """The value of a variable, as a secret; ``None`` where it is absent or empty."""
    return Secret.of(environ.reveal().get(name) or None)


def _entry(source: Secret[Mapping[str, Any]], key: str) -> Any:
    """The value of a key, as a secret; ``None`` where it is absent or ``None``."""
    return Secret.of(source.reveal().get(key))


def _password_of_file(path: str | None) -> Secret[str] | None:
    """The first line of a file, which is where a password is neither inherited nor seen by others."""
    if not path:
        return None
    found = secret_of_file(path)
    if isinstance(found, str):
        raise ConfigurationError(f'POSTAGE_PASSWORD_FILE cannot be read: {found}')
    return found


def _seconds(environ: Secret[Mapping[str, str]], name: str, default: float) -> float:
    text = environ.reveal().get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f'{name} must be a number of seconds, 0 or more, not {text!r:.40}')
    return seconds


def _max_body(text: str | None) -> int:
    if not text:
        return DEFAULT_MAX_BODY
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text)):
        raise ConfigurationError(f'POSTAGE_MAX_BODY must be a number of bytes, 1 or more, not {text!r:.40}')
    return int(text)


# Single values: each is given as a secret, or as ``None``, and checked


def _vhost(where: str, value: Secret[Any] | None) -> str | None:
    vhost = _text(where, value)
    if vhost is not None and len(vhost.encode()) > SHORT_STRING_BYTES:
        raise ConfigurationError(f'{where} is longer than the {SHORT_STRING_BYTES} bytes that AMQP allows')
    return vhost


def _text(where: str, value: Secret[Any] | None) -> str | None:
    text = _utf8(where, value)
    if text is None:
        return None
    if not text.reveal():
        raise ConfigurationError(f'{where} is empty; leave it out, or None, where the default is meant')
    return str(text.reveal())


def _utf8(where: str, value: Secret[Any] | None) -> Secret[str] | None:
    if value is not None and not isinstance(value.reveal(), str):
        raise ConfigurationError(f'{where} must be text, not {type(value.reveal()).__name__}')
    if value is not None and not _is_encodable(value):
        raise ConfigurationError(f'{where} is not UTF-8')
    return value


def _is_encodable(text: Secret[str]) -> bool:
    """Whether it has no lone surrogates, which is how Python reads octets of the environment that are not UTF-8."""
    try:
        text.reveal().encode()
    except UnicodeEncodeError:
        return False
    return True


def _mechanism(where: str, value: Secret[Any] | None) -> str | None:
    given = revealed(value)
    if given is not None and (not isinstance(given, str) or given.upper() not in MECHANISMS):
        raise ConfigurationError(f'{where} must be one of {", ".join(MECHANISMS)}, not {given!r:.40}')
    return None if given is None else given.upper()


def _port(where: str, value: Secret[Any] | None) -> int | None:
    given = revealed(value)
    if given is None:
        return None
    try:
        port = int(given) if isinstance(given, (int, str)) and not isinstance(given, bool) else 0
    except ValueError:
        port = 0
    if not 0 < port < 65536:
        raise ConfigurationError(f'{where} must be a number from 1 to 65535, not {given!r}')
    return port


def _tls(where: str, value: Secret[Any] | None) -> pika.SSLOptions | Literal[False] | None:
    given = revealed(value)
    if given is None or given is False:
        return given
    if given is True:
        return _default_tls()
    if isinstance(given, ssl.SSLContext):
        return pika.SSLOptions(given)
    if isinstance(given, pika.SSLOptions):
        return given
    raise ConfigurationError(
        f'{where} must be True, False, an ssl.SSLContext or pika.SSLOptions, not {type(given).__name__}'
    )


@functools.cache
def _default_tls() -> pika.SSLOptions:
    """Return the one default context, so that equal settings are equal; pika fills the server's name in."""
    return pika.SSLOptions(ssl.create_default_context())


def _hosts(where: str, value: Secret[Any] | None) -> tuple[_Host, ...]:
    """Read ``host``, ``host:port``, ``[address]``, ``[address]:port`` or a bare IPv6 address, or a list of them."""
    hosts = _utf8(where, value)
    if hosts is None:
        return ()
    if re.search('[/@]', hosts.reveal()):
        raise ConfigurationError(f'{where} must be a host or a list of hosts; a URL belongs in POSTAGE_URL or hup')
    return tuple(_host(where, entry.strip()) for entry in hosts.reveal().split(','))


def _host(where: str, entry: str) -> _Host:
    name, port = entry, ''
    if bracketed := re.fullmatch(r'\[([^\[\]]*)\](?::(.*))?', entry):
        name, port = bracketed[1], bracketed[2]
    elif entry.count(':') == 1:
        name, _, port = entry.partition(':')
    if not name:
        raise ConfigurationError(f'{where} has an empty host; separate several hosts by single commas')
    if re.search(r'[\s\[\]]', name):
        raise ConfigurationError(f'{where} has the host {name!r}, which cannot be the name of one')
    return _Host(name, _port(f'the port in {where}', Secret.of(port or None)))


# URLs


def _from_urls(where: str, urls: Secret[str]) -> _Source:
    """Read one URL or several; several share user, password and virtual host, which one of them may name for all."""
    each = map(Secret, map(str.strip, re.split(r',\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)', urls.reveal())))
    sources = [_from_url(where, url) for url in each]

    def shared(name: Literal['vhost', 'user', 'password', 'mechanism'], term: str) -> Any:
        values = {getattr(source, name) for source in sources} - {None}
        if len(values) > 1:
            raise ConfigurationError(
                f'{where} lists URLs that differ in their {term}; all must lead to one broker with the same credentials'
            )
        return values.pop() if values else None

    return _Source(
        hosts=tuple(host for source in sources for host in source.hosts),
        vhost=shared('vhost', 'virtual host'),
        user=shared('user', 'user'),
        password=shared('password', 'password'),
        mechanism=shared('mechanism', 'mechanism'),
    )


def _from_url(where: str, url: Secret[str]) -> _Source:
    is_encrypted, parts = _split(where, url)
    host, vhost = _unquoted(parts.reveal().hostname), _unquoted(parts.reveal().path[1:])
    user, password = _unquoted(parts.reveal().username), _unquoted(parts.reveal().password)
    if not _is_encodable(url) or host is None or vhost is None or user is None or password is None:
        raise ConfigurationError(f'{where} has characters, or %-quoted bytes, that are not UTF-8')
    if re.search(r'[\s,]', host.reveal()) or (parts.reveal().netloc and not host.reveal()):
        raise ConfigurationError(
            f'{where} has an empty host or one that cannot be a name; each of several URLs needs its own amqp://'
        )
    default_port = DEFAULT_TLS_PORT if is_encrypted else DEFAULT_PORT
    options, tls, mechanism = _options(where, Secret(parts.reveal().query))
    return _Source(
        hosts=(
            _Host(
                name=host.reveal() or DEFAULT_HOST,
                port=parts.reveal().port or default_port,
                tls=tls or (_default_tls() if is_encrypted else False),
                options=options,
            ),
        ),
        vhost=_vhost(f'the virtual host in {where}', Secret.of(vhost.reveal() or None)),
        user=_text(f'the user in {where}', Secret.of(user.reveal() or None)),
        password=None if parts.reveal().password is None else _utf8(f'the password in {where}', password),
        mechanism=mechanism,
    )


def _unquoted(part: str | None) -> Secret[str] | None:
    """A part of a URL as it was meant; ``None`` where it cannot be text."""
    try:
        return Secret(unquote(part or '', errors='strict'))
    except UnicodeDecodeError:
        return None


def _split(where: str, url: Secret[str]) -> tuple[bool, Secret[SplitResult]]:
    """Take the URL apart and refuse what would silently be read otherwise than it was meant.

    :returns: whether it asks for TLS, and its parts
    """
    scheme = re.match('(amqps?)://', url.reveal(), re.IGNORECASE)
    if scheme is None:
        raise ConfigurationError(f'{where} must be a URL that begins with amqp:// or amqps://')
    is_encrypted = scheme[1].lower() == 'amqps'
    quoting = (
        "where a user, password or virtual host contains one of : / ? # @ % it must be %-quoted, as in %2F for '/'"
    )
    parts = _parts(url)
    if parts is None:
        raise ConfigurationError(f'{where} has no valid port or host; a port is from 1 to 65535, and {quoting}')
    has_stray_at = '@' not in parts.reveal().netloc and url.reveal().count('@')
    if parts.reveal().fragment or has_stray_at or '/' in parts.reveal().path[1:]:
        raise ConfigurationError(f'{where} has a character out of place; {quoting}')
    return is_encrypted, parts


def _parts(url: Secret[str]) -> Secret[SplitResult] | None:
    """The parts of a URL; ``None`` where it has no valid port or host."""
    try:
        parts = Secret(urlsplit('http://' + url.reveal().partition('://')[2]))
        return None if parts.reveal().port == 0 else parts
    except ValueError:
        return None


def _options(where: str, query: Secret[str]) -> tuple[tuple[tuple[str, str], ...], pika.SSLOptions | None, str | None]:
    """Return the query parameters, each tried on pika, and the encryption and mechanism that they may name."""
    options: dict[str, str] = {}
    tls = mechanism = None
    for name, text in ((each[0], Secret(each[1])) for each in parse_qsl(query.reveal(), keep_blank_values=True)):
        if name in options or not text.reveal():
            raise ConfigurationError(f'{where} needs the query parameter {name!r} once, with a value')
        if name == 'auth_mechanism':
            if mechanism is not None:
                raise ConfigurationError(f'{where} needs the query parameter {name!r} once')
            mechanism = _mechanism(f'{name} in {where}', text)
            continue
        unusable = _unusable(name, text)
        if unusable is not None:
            raise ConfigurationError(f'{where} has the query parameter {name!r} that cannot be used{unusable}')
        if name == 'ssl_options':
            tls = _tls_of_query(text)
        else:
            options[name] = text.reveal()
    return tuple(options.items()), tls, mechanism


def _unusable(name: str, text: Secret[str]) -> str | None:
    """Why a query parameter cannot be used, as the end of a sentence; ``None`` where it can."""
    try:
        if name == 'ssl_options':
            _tls_of_query(text)
        else:
            _check_sendable(_pika_parameters(((name, text.reveal()),)))
    except Exception as error:
        # An error about the text of ssl_options may quote the password of a key file; one about a file does not.
        return f': {error}' if name != 'ssl_options' or isinstance(error, OSError) else ''
    return None


def _check_sendable(parameters: pika.URLParameters) -> None:
    """Refuse what pika takes and fails at later, when it connects.

    :raises ValueError: naming what is wrong
    """
    # Unsigned numbers of 16 bits and a short string in the frames of the handshake (AMQP 0-9-1, section 1.4.2).
    if isinstance(parameters.heartbeat, int) and parameters.heartbeat > HEARTBEAT_MAX:
        raise ValueError(f'it must be {HEARTBEAT_MAX} or less')
    if len(parameters.locale.encode()) > SHORT_STRING_BYTES:
        raise ValueError(f'it must have {SHORT_STRING_BYTES} bytes or fewer')
    if parameters.channel_max < CHANNELS_NEEDED:
        raise ValueError(
            f'a connection needs {CHANNELS_NEEDED} channels: to declare, to publish or consume, for replies'
        )
    for name in ('socket_timeout', 'stack_timeout', 'blocked_connection_timeout', 'retry_delay'):
        seconds = getattr(parameters, name)
        if seconds is not None and not 0 <= seconds < math.inf:
            raise ValueError('it must be a number of seconds, 0 or more')


@functools.lru_cache(maxsize=64)
def _tls_of_query(text: Secret[str]) -> pika.SSLOptions | None:
    """Return pika's reading of ``ssl_options``, the same object for the same text: equal settings are equal."""
    return _pika_parameters((('ssl_options', text.reveal()),)).ssl_options


def _pika_parameters(options: Sequence[tuple[str, str]]) -> pika.URLParameters:
    """Return pika's defaults with the query parameters applied, by pika's own reading of them."""
    return pika.URLParameters('amqp:///?' + urlencode(options))


_debug_lock = threading.Lock()
