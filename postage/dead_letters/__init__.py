"""Stores for messages that no handler could handle: a SQLite file, or a queue on the broker.

A processor puts letters into the store that is its ``dead_letters``; the command ``postage dead-letters`` reads them,
edits them and sends them back to where they came from.

``store.py``
    what the stores have in common
``sqlite.py``
    :class:`SQLiteDeadLetters`
``queue.py``
    :class:`QueueDeadLetters`
``replay.py``
    sending them back
``form.py``
    a letter as JSON
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from postage.dead_letters.queue import QueueDeadLetters
    from postage.dead_letters.sqlite import SQLiteDeadLetters

__all__ = ['QueueDeadLetters', 'SQLiteDeadLetters']


def __getattr__(name: str) -> Any:
    # A store is imported when it is asked for: SQLite needs no broker, and the other no database.
    if name == 'SQLiteDeadLetters':
        from postage.dead_letters.sqlite import SQLiteDeadLetters

        return SQLiteDeadLetters
    if name == 'QueueDeadLetters':
        from postage.dead_letters.queue import QueueDeadLetters

        return QueueDeadLetters
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
