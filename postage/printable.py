"""Text that others wrote, made fit for a log line, a terminal and an error: one line, without control characters."""

from __future__ import annotations

import functools
import logging
import re
import traceback
from collections.abc import Callable
from typing import Any, Final

_traceback: Final = BaseException.__dict__['__traceback__']
LOGGED: Final = 65_536  # characters of a log record's text, and of its traceback: a message may have many more
SHOWN: Final = 80  # characters of a value in an error's text

# C0 and C1 controls, line and paragraph separators, and what changes the direction of text: a terminal obeys them, and
# a reader of a log is misled by them (https://www.unicode.org/reports/tr36/). Lone surrogates cannot be written at all.
_UNFIT: Final = re.compile('[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
_UNFIT_IN_LINES: Final = re.compile(_UNFIT.pattern.replace('\x00-\x1f', '\x00-\x08\x0b-\x1f'))


def printable(text: str, length: int | None = None) -> str:
    """Text on one line, with every control character written as its escape, such as ``\\x1b``.

    :param length: characters that are kept, at most; an ellipsis stands for the rest
    """
    if length is not None and len(text) > length:
        text = f'{text[: length - 1]}…'
    if text.isascii() and text.isprintable():
        return text
    return _UNFIT.sub(_escape, text)


def printable_lines(text: str) -> str:
    """The same, but for newlines and tabs, which stay: for what is shown as lines."""
    return _UNFIT_IN_LINES.sub(_escape, text)


def shown(value: object, length: int = SHOWN) -> str:
    """The ``repr()`` of any value, for an error: on one line, bounded, and never raising."""
    try:
        text = repr(value)
    except Exception as error:  # a number of too many digits, too deep, or a class of the user's
        text = f'<{class_of(value)}, whose repr() raises {class_of(error)}>'
    return printable(text, length)


def text_of(error: BaseException) -> str:
    """The text of an exception; its class, where that is a user's own whose text cannot be had."""
    try:
        return str(error)
    except Exception as failure:
        return f'<{class_of(error)}, whose str() raises {class_of(failure)}>'


def traceback_of(error: BaseException) -> str:
    """The traceback of an exception, though a user's own may raise something where it is asked for its notes, say."""
    try:
        return ''.join(traceback.format_exception(error))
    except Exception:
        frames = ''.join(traceback.format_tb(_traceback.__get__(error)))
        return f'Traceback (most recent call last):\n{frames}{class_of(error)}: {text_of(error)}\n'


def class_of(value: object) -> str:
    """The name of a value's class, whatever a user's own class or metaclass says of itself."""
    name: str = type.__dict__['__name__'].__get__(type(value))
    return name


def class_path_of(value: object) -> str:
    """The same with its module, but for what is built in."""
    module, name = (type.__dict__[part].__get__(type(value)) for part in ('__module__', '__qualname__'))
    return f'{name}' if module == 'builtins' else f'{module}.{name}'


def encodable(text: str) -> str:
    """Text that UTF-8 can hold: what is no character (a lone surrogate) is written as its escape."""
    return text.encode('utf-8', 'backslashreplace').decode()


def shown_half_built(method: Callable[[Any], str]) -> Callable[[Any], str]:
    """Have a ``__repr__`` work on an object whose constructor has not come to its end, too: a debugger shows those."""

    @functools.wraps(method)
    def wrapped(self: Any) -> str:
        try:
            return method(self)
        except (AttributeError, TypeError):
            return f'<{type(self).__name__}, not made to its end>'

    return wrapped


class _Printable(logging.Filter):
    """Makes the text of log records printable: what they quote came from a message, or from a server."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record where it has to be. Never keeps one back."""
        try:
            text = record.getMessage()
        except Exception:
            return True  # logging itself tells of it
        clean = _cut(printable(text))
        if clean != text:
            record.msg, record.args = clean, ()
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None and not record.exc_text:
            record.exc_text = _cut(printable_lines(traceback_of(record.exc_info[1]).rstrip('\n')))
        return True


_printable = _Printable()
_BROKER: Final = ('channel', 'connection', 'delivering', 'node', 'publisher', 'pulse', 'server', 'virtual_host')
for _name in ('', '.amqp', '.microthreads', '.run', *(f'.broker.{name}' for name in _BROKER)):
    logging.getLogger(f'postage{_name}').addFilter(_printable)


def _cut(text: str) -> str:
    """Text without its middle, where it is too long: the end of a traceback says what was raised."""
    if len(text) <= LOGGED:
        return text
    half = LOGGED // 2
    return f'{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}'


def _escape(found: re.Match[str]) -> str:
    return found.group().encode('unicode_escape', 'surrogatepass').decode('ascii')
