"""Missive: ``SQLiteDLQ(connection_str=…)``, whose ``oldest()`` gives a message, the reason and the time."""

import pathlib
import tempfile

from postage import missive
from postage.missive.dlq.sqlite import SQLiteDLQ
from stage import note

with tempfile.TemporaryDirectory() as folder:
    dlq = SQLiteDLQ(connection_str=str(pathlib.Path(folder) / 'dlq.db'))
    processor = missive.Processor()
    processor.set_dlq(dlq)
    with processor.test_client() as client:
        client.send(missive.RawMessage(b'nobody takes it'))
        note(len(client.acked))
    message, reason, since = dlq.oldest()
    note(message.raw_data.decode(), reason, since.tzinfo is not None, len(dlq))
    del dlq[message.message_id]
    note(len(dlq))
