"""Watching the sources of a program."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence

from postage.errors import ConfigurationError


def watch(directories: Sequence[str], changed: Callable[[str], None]) -> Callable[[], None]:
    """Watch the Python files in some directories, and below, in a thread of its own.

    :param changed: called in that thread with the names of what has changed
    :return: ends it
    :raises ConfigurationError: ``watchfiles`` is not installed
    """
    try:
        import watchfiles
    except ImportError:
        raise ConfigurationError("--reload needs watchfiles, which comes with: pip install 'postage[run]'") from None
    logging.getLogger('watchfiles').setLevel(logging.WARNING)  # it says how many there are, and we say which
    over = threading.Event()

    def look() -> None:
        for changes in watchfiles.watch(
            *directories, watch_filter=watchfiles.PythonFilter(), stop_event=over, raise_interrupt=False
        ):
            names = sorted({os.path.relpath(path) for _, path in changes})
            changed(', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else ''))

    thread = threading.Thread(target=look, name='postage-reload', daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join(5.0)

    return end
