"""A message with a date or a set in it.

Better: they are encoded as one would expect; it was a ``TypeError``.
"""

import datetime
import json

from postage import messaging
from stage import note, raised

body = {'day': datetime.date(2024, 2, 29), 'set': {1}}
note(raised(lambda: json.loads(messaging.JsonEncoder().encode(body))))  # {"day": "2024-02-29", "set": [1]}
