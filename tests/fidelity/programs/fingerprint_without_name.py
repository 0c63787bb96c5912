"""A fingerprint that is given no name and no type.

Better: they stay ``None``; they became the text ``'None'``.
"""

from postage import messaging
from stage import note

note(messaging.Fingerprint(None, None, 1, 'h', 'u', 'v').as_tuple())  # [null, null, "1", "h", "u", "v"]
