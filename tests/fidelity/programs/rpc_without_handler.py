"""An RPC that nobody handles.

Better: an error at once, which names the command; the caller waited out every time-out.
"""

from stage import FINGERPRINT, Answering, Processor, Producer, note


class Impatient(Producer):
    rpc_timeout = 0.5
    max_retry = 0


with Answering(Processor):
    reply = Impatient(FINGERPRINT).rpc_unknown()
    note(type(reply).__name__)  # "MessageResultError"
    note('unknown' in reply.body['content']['message'])  # true
