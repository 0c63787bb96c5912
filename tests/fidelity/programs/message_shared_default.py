"""Two commands without parameters, of which one changes its own.

Better: no two messages share a default value.
"""

from postage import messaging
from stage import note

messaging.MessageCommand('one').body['content']['parameters']['changed'] = True
note(messaging.MessageCommand('other').body['content'])  # {"parameters": {}}
