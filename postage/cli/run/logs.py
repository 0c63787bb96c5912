"""How what ``postage run`` starts logs: in lines for people, or in JSON, with what is known of the message in hand."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from postage.printable import printable, shown

fcntl: Any = None
with contextlib.suppress(ImportError):  # help is shown without POSIX, too
    import fcntl

logger = logging.getLogger('postage.run')

Fields = Callable[[logging.LogRecord], dict[str, Any]]
"""What is known of that which a record is about, by name."""

SHOWN = 500  # characters of what a log call was given, where it cannot be formatted
TEXT = '%(asctime)s %(levelname)s %(name)s: %(message)s'


def configure(log_format: str, level: str, fields: Sequence[Fields] = ()) -> None:
    """Log to standard error, warnings and exceptions that nothing catches included.

    :param log_format: ``text`` or ``json``
    :param level: such as ``info``
    :param fields: say what is known of a record
    """
    handler = _Handler(_InTurn(sys.stderr))
    handler.setFormatter(JsonFormatter(fields) if log_format == 'json' else TextFormatter(fields))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = lambda *what: logger.critical('the process ends by an exception', exc_info=what)
    threading.excepthook = _of_thread
    sys.unraisablehook = _unraisable


class _InTurn:
    """Writes whole lines to what several processes write to, one of them at a time.

    A pipe takes what is longer than 4096 bytes in pieces, and another process's lines between them.

    The lock is that of the open file itself, and goes with the process that holds it.

    :param stream: where to, such as standard error; ``None`` where there is none
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if self._stream is None:
            return
        is_locked = self._lock()
        try:
            self._stream.write(text)
            self._stream.flush()
        finally:
            if is_locked:
                fcntl.lockf(self._stream, fcntl.LOCK_UN)

    def flush(self) -> None:
        """That is done already."""

    def _lock(self) -> bool:
        try:
            fcntl.lockf(self._stream, fcntl.LOCK_EX)
        except (AttributeError, OSError, ValueError):  # no POSIX, no lock for a pipe, or no file
            return False
        return True


class _Handler(logging.StreamHandler[_InTurn]):
    """Says of a record that cannot be formatted what it was to say, as a record like any other."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as fault:
            return super().format(_unformattable(record, fault))


def _unformattable(record: logging.LogRecord, fault: Exception) -> logging.LogRecord:
    where = f'{record.pathname}:{record.lineno}'
    told = logging.makeLogRecord(record.__dict__)
    told.msg = '%s logs %s with %s, which cannot be formatted'
    told.args = where, shown(record.msg, SHOWN), shown(record.args, SHOWN)
    told.exc_info, told.exc_text = (type(fault), fault, fault.__traceback__), None
    return told


def _of_thread(what: Any) -> None:
    if what.exc_type is not SystemExit:
        name = what.thread.name if what.thread is not None else 'unknown'
        logger.error(
            'thread %s ended by an exception', name, exc_info=(what.exc_type, what.exc_value, what.exc_traceback)
        )


def _unraisable(what: Any) -> None:
    text = what.err_msg or 'exception ignored in'
    logger.error('%s %r', text, what.object, exc_info=_exception(what))


def _exception(what: Any) -> Any:
    return what.exc_type, what.exc_value, what.exc_traceback


class _Known:
    def __init__(self, fields: Sequence[Fields]) -> None:
        self._fields = fields

    def of(self, record: logging.LogRecord) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for fields in self._fields:
            known.update(fields(record))
        return {name: value for name, value in known.items() if value is not None}


class TextFormatter(logging.Formatter):
    """Lines for people; what is known of the message stands at their end."""

    def __init__(self, fields: Sequence[Fields] = ()) -> None:
        super().__init__(TEXT)
        self._known = _Known(fields)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        line = super().formatMessage(record)
        known = self._known.of(record)
        known.pop('fingerprint', None)
        said = ' '.join(f'{name}={value}' for name, value in known.items())
        return f'{line} [{printable(said)}]' if said else line


class JsonFormatter(logging.Formatter):
    """An object in each line."""

    def __init__(self, fields: Sequence[Fields] = ()) -> None:
        super().__init__()
        self._known = _Known(fields)

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line: dict[str, Any] = {
            'time': moment.isoformat(timespec='milliseconds'),
            'level': record.levelname,
            'logger': record.name,
            'message': record.getMessage(),
            'pid': record.process,
            **self._known.of(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line['exception'] = record.exc_text or self.formatException(record.exc_info)
        if record.stack_info:
            line['stack'] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str)
