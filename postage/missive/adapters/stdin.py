"""Messages that are the lines of a file, by default of the standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from postage.missive.adapters.running import RunnableAdapter
from postage.missive.contexts import ProcessingContext
from postage.missive.messages import M
from postage.missive.processor import Processor


class StdinAdapter(RunnableAdapter[M]):
    """Has each line handled as a message, however long, without its line feed; the end of the file ends the run.

    An answer is written to the standard output as a line. A line cannot be taken back: what a handler refuses is
    lost, which is logged.

    :param message_cls: makes a message out of a line
    :param processor: what handles the messages
    :param filelike: anything with ``readline()``, of bytes or text; the standard input by default
    """

    def __init__(self, message_cls: Callable[[bytes], M], processor: Processor[M], filelike: Any = None) -> None:
        super().__init__(message_cls, processor)
        self._filelike = filelike

    def _run(self, ctx: ProcessingContext[M]) -> None:
        filelike = sys.stdin.buffer if self._filelike is None else self._filelike
        while not self.shutdown_handler.should_exit():
            line = self.shutdown_handler.wait_for(filelike.readline)
            if not line:
                break
            ctx.handle(ctx.new_message(_data(line)))

    def ack(self, message: M) -> None:
        """Nothing: a line that was read is gone already."""

    def nack(self, message: M) -> None:
        """Log that the message is lost."""
        self._tell_once('stdin takes no message back: what a handler refuses is lost')

    def reply(self, message: M, data: bytes, content_type: str) -> None:
        """Write an answer to the standard output, as a line."""
        sys.stdout.flush()
        sys.stdout.buffer.write(data + b'\n')
        sys.stdout.buffer.flush()


def _data(line: bytes | str) -> bytes:
    data = line.encode('utf-8', 'surrogateescape') if isinstance(line, str) else bytes(line)
    return data[:-1] if data.endswith(b'\n') else data
