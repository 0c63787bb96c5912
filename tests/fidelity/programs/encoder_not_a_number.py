"""A message with NaN in it.

Better: a clear error that names the key; it was sent as something that is not JSON.
"""

from stage import note, producer, raised

note(raised(producer().message_echo, {'a': [1, float('nan')]}))  # "EncodingError"
