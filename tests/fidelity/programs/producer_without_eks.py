"""A producer that names no exchange.

Better: an error at the call says what it needs; an exchange ``noname`` was declared, and the message went there.
"""

from postage import messaging
from stage import note, raised

note(raised(lambda: messaging.GenericProducer({}).message_echo() and None))  # "ConfigurationError"
