"""An answer, as its caller's callback sees it.

Better: its fingerprint says who answered; it was empty.
"""

from stage import FINGERPRINT, Answering, Processor, messaging, note, producer


class Named(Processor):
    @messaging.RpcHandler('command', 'who')
    def rpc_who(self, content, reply_func):
        reply_func('me')


with Answering(Named):
    asking = producer()
    bodies = []
    asking.consume_rpc(asking.rpc_who(_queue_only=True), callback=bodies.append)
    note(bodies[0]['fingerprint'] == FINGERPRINT)  # true
