"""``result_type`` and ``boolean_value`` of a result are class attributes."""

from postage import messaging
from stage import note


class Partial(messaging.MessageResult):
    result_type = 'partial'
    boolean_value = False


class Refusal(messaging.MessageResultError):
    name = 'refusal'


partial = Partial([1, 2], 'more to come')
note(partial.body, bool(partial), partial.result_type, partial.type, partial.name)
refusal = Refusal('not today')
note(refusal.body, bool(refusal), refusal.result_type, refusal.boolean_value)
exception = messaging.MessageResultException('KeyError', 'missing')
note(exception.body, bool(exception), exception.result_type)
