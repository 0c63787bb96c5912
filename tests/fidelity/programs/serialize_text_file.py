"""``serialize_text_file(path)`` gives the file's name and lines."""

import pathlib
import tempfile

from stage import note, producer

with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'lines.txt'
    path.write_text('one\ntwo\n')
    note(producer().serialize_text_file(str(path)))
