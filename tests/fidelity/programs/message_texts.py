"""Messages with equal bodies are equal; ``str(message)`` is the text of the body."""

from postage import messaging
from stage import note

one, same, other = messaging.Message(1, k=2), messaging.Message(1, k=2), messaging.Message(2)
note(one == same, one == other, one != other)
note(str(one) == str(one.body))
one.fingerprint(name='app', pid='5')
note(one.body['fingerprint'], one == same)
