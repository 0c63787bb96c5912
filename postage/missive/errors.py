"""What Missive raises beyond the errors of Postage.

::

    ConfigurationError
    ├── DuplicateMatcher      two handlers for one matcher                            (Python: RuntimeError)
    └── MissingExtra          a package is missing that an adapter stands on          (Python: ImportError)
    PostageError
    ├── UnhandledMessage      no handler matched, or several, without a dead letter queue   (Python: RuntimeError)
    ├── UndecidedMessage      a handler neither acknowledged nor refused its message  (Python: RuntimeError)
    ├── DeadLetterError       the dead letter queue failed, so the message is not acknowledged
    └── ProcessorEnded        the processor takes no more messages                    (Postage: Closed)
"""

from __future__ import annotations

from typing import Any

from postage import errors


class DuplicateMatcher(errors.ConfigurationError, RuntimeError):
    """Raised by ``handle_for`` where the processor has a handler for that matcher already."""


class MissingExtra(errors.ConfigurationError, ImportError):
    """Raised by the import of an adapter whose package is not installed; names the extra that brings it."""

    def __init__(self, adapter: str, package: str, extra: str) -> None:
        super().__init__(f'{adapter} needs {package}, which is not installed: pip install postage[{extra}]')


class UnhandledMessage(errors.PostageError, RuntimeError):
    """Raised where no handler matches a message, or several do, and the processor has no dead letter queue.

    :ivar message: the message
    :ivar reason: ``'no matching handlers'`` or ``'multiple matching handlers'``
    """

    def __init__(self, message: Any, reason: str) -> None:
        super().__init__(f'{reason} for {message!r}')
        self.message = message
        self.reason = reason


class UndecidedMessage(errors.PostageError, RuntimeError):
    """Raised where a handler returned without having called ``ack()`` or ``nack()``."""


class DeadLetterError(errors.PostageError):
    """Raised where a message could not be stored in the dead letter queue; it is not acknowledged."""


class ProcessorEnded(errors.Closed):
    """Raised where a message comes to a processor that has ended, by a command for one; it stays as it is."""
