"""``GenericApplication``: its queues and keys, and ``ping``.

Better: it can be made; a misspelled name raised ``NameError`` at the first instance.
"""

from postage.generic_application import GenericApplication, GenericApplicationExchange
from stage import FINGERPRINT, Producer, note

application = GenericApplication(FINGERPRINT, None)
asking = Producer(FINGERPRINT)
asking.eks = [(GenericApplicationExchange, 'program')]
note(application.groups)  # []
note(application.sid)  # "program"
note(application.uid)  # "4711@somewhere"
