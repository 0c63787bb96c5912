"""An RPC handler that raises ``ExitScheduler`` or ``RejectMessage`` unanswered: its caller is told by an exception."""

from postage import messaging, microthreads
from stage import FINGERPRINT, Answering, Processor, Producer, note


class Patient(Producer):
    rpc_timeout = 3
    max_retry = 0


class Ending(Processor):
    @messaging.RpcHandler('command', 'refuse')
    def rpc_refuse(self, content, reply_func):
        raise messaging.RejectMessage('not me')

    @messaging.RpcHandler('command', 'end')
    def rpc_end(self, content, reply_func):
        raise microthreads.ExitScheduler('the end')


asking = Patient(FINGERPRINT)
answering = Answering(Ending)
answering.thread.start()
note(asking.rpc_refuse().body['content'])
note(asking.rpc_end().body['content'])
answering.thread.join()
note('the loop has ended')
