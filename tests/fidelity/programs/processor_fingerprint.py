"""A processor whose fingerprint has only a name.

Better: it is laid over its own, as a producer's is: all six keys are there, and travel with its answers.
"""

from stage import EQK, Answering, Processor, messaging, note, producer


class Named(Processor):
    @messaging.RpcHandler('command', 'who')
    def rpc_who(self, content, reply_func):
        reply_func(self.fingerprint)


note(sorted(Named({'name': 'app'}, [], None, None).fingerprint))  # ["host", "name", "pid", "type", "user", "vhost"]


class Asked(Named):
    def __init__(self, fingerprint, eqk, hup, vhost):
        super().__init__({'name': 'app'}, EQK, hup, vhost)


with Answering(Asked):
    note(sorted(producer().rpc_who().body['content']['value']))  # ["host", "name", "pid", "type", "user", "vhost"]
