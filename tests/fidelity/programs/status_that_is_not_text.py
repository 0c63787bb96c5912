"""A status that is not text.

Better: it travels itself as well, in ``content['status']``; its name is its text as before.
"""

from postage import messaging
from stage import note

status = messaging.MessageStatus(5)
note(status.body['name'])  # "5"
note(status.body['content'])  # {"status": 5}
