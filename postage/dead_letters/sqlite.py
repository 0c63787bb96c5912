"""Dead letters in a SQLite file.

A letter that was put is on the disk: the journal is a write-ahead log, synchronised at each commit
(https://www.sqlite.org/pragma.html#pragma_synchronous). That costs milliseconds, so letters that several threads put at
the same time share one commit. Several processes may use one file on a local disk (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

from postage import errors
from postage.dead_letters.store import ALL, DeadLetters, Group, GroupBy, Handout, Selection, StoredLetter, edited
from postage.messaging.letters import DeadLetter
from postage.printable import shown, shown_half_built

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x706F7374  # says, in the file's header, whose it is
PAGE: Final = 500  # letters read at a time, so that no other program is kept from writing for long

_SCHEMA: Final = """
CREATE TABLE letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id TEXT NOT NULL,
    queue TEXT NOT NULL,
    exchange TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    reason TEXT NOT NULL,
    exception TEXT NOT NULL,
    message TEXT NOT NULL,
    traceback TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_attempt_at REAL NOT NULL,
    died_at REAL NOT NULL,
    is_repeated INTEGER NOT NULL,
    properties TEXT NOT NULL,
    body BLOB NOT NULL,
    replay_begun_at REAL
);
CREATE INDEX letters_of_a_message ON letters (message_id, queue);
"""
_FIELDS: Final = (
    *('queue', 'exchange', 'routing_key', 'reason', 'exception', 'message', 'traceback', 'attempts'),
    *('first_attempt_at', 'died_at', 'is_repeated', 'properties', 'body'),
)
_COLUMNS: Final = ', '.join(_FIELDS)
_INSERT: Final = (
    f'INSERT INTO letters (message_id, {_COLUMNS}) VALUES (:message_id, {", ".join(f":{name}" for name in _FIELDS)})'
)
# Who dies a second time because its acknowledgement was lost is the same letter.
_REPEAT: Final = (
    'UPDATE letters SET reason = :reason, exception = :exception, message = :message, traceback = :traceback,'
    ' attempts = max(attempts, :attempts), died_at = :died_at, is_repeated = 1'
    ' WHERE message_id = :message_id AND queue = :queue AND body = :body'
)


class SQLiteDeadLetters(DeadLetters):
    """A store of dead letters in a SQLite file. Safe for several threads and processes.

    :param path: the file, which is made where it does not exist, and so are its folders
    :param timeout: seconds to wait for another process that is writing
    :param create: make the file where it does not exist; without, that is an error
    :param max_bytes: how large the file may become; then it is full, and takes no more letters
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        timeout: float = 5.0,
        create: bool = True,
        max_bytes: int | None = None,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise errors.ConfigurationError(f'the path of a store must be text or a path, not {shown(path)}')
        self.path = Path(path)
        self.timeout = timeout
        self.create = create
        self.max_bytes = max_bytes
        self._start_over()

    def __str__(self) -> str:
        return f'the store {self.path}'

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.path}>'

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._waiting: list[_Waiting] = []
        self._waiting_lock = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._process = os.getpid()

    def close(self) -> None:
        with self._lock:
            if self._open is not None and self._process == os.getpid():
                self._open.close()
            self._open = None

    # Letters in

    def put(self, letter: DeadLetter) -> str:
        """Take a letter over. It is on the disk when this returns.

        A letter of a message that is already there, put by a process that died before it could acknowledge it, takes
        that one's place.

        :return: where it lies, such as ``letter 2 in dead.db``
        :raises errors.StoreError: the disk is full, another process keeps the store locked, or it is no such store
        :raises errors.LetterRefused: it is too large for the file, or for SQLite
        """
        self._check_process()
        mine = _Waiting(letter)
        with self._waiting_lock:
            self._waiting.append(mine)
        with self._lock:
            if not mine.is_done:
                self._put_all()
        if mine.error is not None:
            raise mine.error
        return f'letter {mine.id} in {self.path}' if mine.id is not None else f'a letter in {self.path}'

    def _put_all(self) -> None:
        """Write what all threads have put meanwhile, in one commit."""
        with self._waiting_lock:
            waiting, self._waiting = self._waiting, []
        error: errors.StoreError | None = None
        try:
            with self._transaction() as database:
                for each in waiting:
                    each.error = self._write(database, each)
        except errors.StoreError as failure:
            error = failure
        for each in waiting:
            each.is_done, each.error = True, error or each.error

    def _write(self, database: sqlite3.Connection, waiting: _Waiting) -> errors.StoreError | None:
        """Write one letter. Returns why it can never be written; that must not keep the others from being."""
        letter = waiting.letter
        try:
            if self.max_bytes is not None and len(letter.body) > self.max_bytes:
                raise OverflowError(f'its body is {len(letter.body):,} bytes, and the file may be {self.max_bytes:,}')
            row = _row(letter)
            if letter.is_repeated and letter.message_id and database.execute(_REPEAT, row).rowcount:
                return None
            waiting.id = database.execute(_INSERT, row).lastrowid
        except (ArithmeticError, RecursionError, TypeError, ValueError, sqlite3.DataError) as error:
            return errors.LetterRefused(f'{self} cannot take a letter: {error}')
        return None

    # Letters out

    def letters(self, selection: Selection = ALL, limit: int | None = None) -> Iterator[StoredLetter]:
        where, values = _conditions(selection)
        last, left = 0, limit
        while left is None or left > 0:
            page = PAGE if left is None else min(PAGE, left)
            query = f'SELECT id, replay_begun_at, {_COLUMNS} FROM letters WHERE id > ?{where} ORDER BY id LIMIT ?'
            rows = self._query(query, last, *values, page)
            yield from map(_stored, rows)
            if len(rows) < page:
                return
            last = rows[-1][0]
            left = None if left is None else left - page

    def count(self, selection: Selection = ALL) -> int:
        where, values = _conditions(selection)
        return int(self._query(f'SELECT count(*) FROM letters WHERE id > 0{where}', *values)[0][0])

    def groups(self, by: GroupBy = 'exception', selection: Selection = ALL) -> list[Group]:
        where, values = _conditions(selection)
        if by not in _FIELDS:
            raise ValueError(f'letters cannot be grouped by {by!r}')
        rows = self._query(
            f'SELECT {by}, count(*), min(died_at), max(died_at) FROM letters WHERE id > 0{where}'
            f' GROUP BY {by} ORDER BY 2 DESC, 1',
            *values,
        )
        return [Group(*row) for row in rows]

    # Changes

    def edit(self, id: str, **changes: Any) -> StoredLetter:
        with self._transaction() as database:
            row = _row(edited(self.get(id).letter, changes))
            columns = ', '.join(f'{name} = :{name}' for name in ('message_id', *changes))
            database.execute(f'UPDATE letters SET {columns} WHERE id = :id', {**row, 'id': int(id)})
        return self.get(id)

    def replace(self, letter: DeadLetter) -> None:
        """Take a letter over in place of those of the same message and queue. It is on the disk when this returns.

        :raises errors.StoreError: the disk is full, another process keeps the store locked, or it is no such store
        """
        row = _row(letter)
        with self._transaction() as database:
            database.execute('DELETE FROM letters WHERE message_id = :message_id AND queue = :queue', row)
            database.execute(_INSERT, row)

    def delete(self, selection: Selection = ALL) -> int:
        where, values = _conditions(selection)
        with self._transaction() as database:
            return database.execute(f'DELETE FROM letters WHERE id > 0{where}', values).rowcount

    @contextlib.contextmanager
    def hand_out(self, selection: Selection = ALL) -> Generator[Handout, None, None]:
        """Take letters out one by one. Whatever ends the ``with``, what was not settled is still in the store.

        :raises errors.StoreError: another program is doing that at the moment
        """
        self.count()  # the store has to be there, and to be one
        with self._alone():
            yield _SQLiteHandout(self, selection)

    @contextlib.contextmanager
    def _alone(self) -> Generator[None, None, None]:
        """Let no other process hand out letters, until the end of the ``with`` or of this process, however that comes.

        The lock is that of an empty database beside the store, which the system gives back when a process dies.
        """
        _make_private(Path(f'{self.path}.replay'))
        gate = sqlite3.connect(f'{self.path}.replay', timeout=0, isolation_level=None)
        try:
            with contextlib.closing(gate):
                gate.execute('BEGIN EXCLUSIVE')
                yield
        except sqlite3.OperationalError as error:
            raise errors.StoreError(f'{self} is being replayed by another process ({error})') from None

    # The database

    @contextlib.contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection, None, None]:
        self._check_process()
        with self._lock, self._translated():
            database = self._database()
            database.execute('BEGIN IMMEDIATE')
            try:
                yield database
                database.execute('COMMIT')
            except BaseException:
                if database.in_transaction:
                    database.execute('ROLLBACK')
                raise

    def _query(self, query: str, *values: Any) -> list[Any]:
        self._check_process()
        with self._lock, self._translated():
            return self._database().execute(query, values).fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as error:
            raise errors.StoreError(f'{self} cannot be used: {error}') from error

    def _check_process(self) -> None:
        if self._process != os.getpid():  # a forked child must not use its parent's connection
            self._start_over()

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = self._connect()
        return self._open

    def _connect(self) -> sqlite3.Connection:
        if not self.create and not self.path.exists():
            raise errors.StoreError(f'{self} does not exist')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _make_private(self.path)
        except OSError as error:
            raise errors.StoreError(f'{self} cannot be made: {error}') from error
        database = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute('PRAGMA user_version').fetchone()
        (tables,) = database.execute('SELECT count(*) FROM sqlite_master').fetchone()
        (owner,) = database.execute('PRAGMA application_id').fetchone()
        if tables and owner != APPLICATION_ID:
            raise errors.StoreError(f'{self} is a database of another program')
        if version > SCHEMA_VERSION:
            raise errors.StoreError(f'{self} was made by a newer Postage (version {version} of its schema)')
        database.execute('PRAGMA journal_mode = WAL')
        database.execute('PRAGMA synchronous = FULL')
        if self.max_bytes is not None:
            (size,) = database.execute('PRAGMA page_size').fetchone()
            database.execute(f'PRAGMA max_page_count = {max(1, self.max_bytes // size)}')
        if not tables:
            self._make_schema(database)

    @staticmethod
    def _make_schema(database: sqlite3.Connection) -> None:
        database.execute('BEGIN IMMEDIATE')
        try:
            (tables,) = database.execute('SELECT count(*) FROM sqlite_master').fetchone()
            if not tables:  # another process may have been quicker
                for statement in _SCHEMA.split(';')[:-1]:
                    database.execute(statement)
                database.execute(f'PRAGMA application_id = {APPLICATION_ID}')
                database.execute(f'PRAGMA user_version = {SCHEMA_VERSION}')
            database.execute('COMMIT')
        except BaseException:
            database.execute('ROLLBACK')
            raise


class _Waiting:
    """A letter that a thread has put, on its way into the file."""

    __slots__ = ('error', 'id', 'is_done', 'letter')

    def __init__(self, letter: DeadLetter) -> None:
        self.letter = letter
        self.id: int | None = None  # of the letter that it became, where that is a new one
        self.is_done = False
        self.error: errors.StoreError | None = None


class _SQLiteHandout(Handout):
    """Letters that are marked before they are given out: a mark says that they may have been sent."""

    def __init__(self, store: SQLiteDeadLetters, selection: Selection) -> None:
        self._store = store
        self._selection = selection

    def batches(self, size: int) -> Iterator[list[StoredLetter]]:
        where, values = _conditions(self._selection)
        ((end,),) = self._store._query(f'SELECT max(id) FROM letters WHERE id > 0{where}', *values)
        last = 0
        while end is not None:  # what dies meanwhile is for the next time
            rows = self._store._query(
                f'SELECT id, replay_begun_at, {_COLUMNS} FROM letters WHERE id > ? AND id <= ?{where}'
                ' ORDER BY id LIMIT ?',
                *(last, end, *values, size),
            )
            if not rows:
                return
            last = rows[-1][0]
            with self._store._transaction() as database:
                database.executemany(
                    'UPDATE letters SET replay_begun_at = ? WHERE id = ?', [(time.time(), row[0]) for row in rows]
                )
            yield list(map(_stored, rows))

    def settle(self, letters: list[StoredLetter]) -> None:
        with self._store._transaction() as database:
            database.executemany('DELETE FROM letters WHERE id = ?', [(int(stored.id),) for stored in letters])

    def put_back(self, letters: list[StoredLetter]) -> None:
        with self._store._transaction() as database:
            database.executemany(
                'UPDATE letters SET replay_begun_at = ? WHERE id = ?',
                [(stored.replay_begun_at, int(stored.id)) for stored in letters],
            )


def _make_private(path: Path) -> None:
    """Make a file, where there is none, that its owner alone may read; SQLite gives its side files the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _conditions(selection: Selection) -> tuple[str, list[Any]]:
    """A selection as the rest of a WHERE clause."""
    clauses: list[str] = []
    values: list[Any] = []
    if selection.ids:
        clauses.append(f'id IN ({", ".join("?" * len(selection.ids))})')
        values += map(_number_of, selection.ids)
    if selection.exception is not None:
        # The name itself, or the end of it behind a dot.
        clauses.append("(exception = ? OR substr('.' || exception, -length(?)) = ?)")
        values += [selection.exception, f'.{selection.exception}', f'.{selection.exception}']
    for name in ('queue', 'reason', 'message_id'):
        value = getattr(selection, name)
        if value is not None:
            clauses.append(f'{name} = ?')
            values.append(value)
    return ''.join(f' AND {clause}' for clause in clauses), values


def _number_of(id: str) -> int:
    """The number of a row; -1, which none has, where SQLite could not hold it."""
    return int(id) if id.isascii() and id.isdecimal() and len(id) < 19 else -1


def _row(letter: DeadLetter) -> dict[str, Any]:
    row = {name: getattr(letter, name) for name in _FIELDS}
    return {**row, 'message_id': letter.message_id, 'properties': json.dumps(letter.properties)}


def _stored(row: Any) -> StoredLetter:
    id, replay_begun_at, *fields = row
    values = dict(zip(_FIELDS, fields, strict=True))
    values['properties'] = json.loads(values['properties'])
    values['is_repeated'] = bool(values['is_repeated'])
    return StoredLetter(str(id), DeadLetter(**values), replay_begun_at)
