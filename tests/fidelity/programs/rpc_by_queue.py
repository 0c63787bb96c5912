"""``_queue_only`` gives the queue of the answer, and ``consume_rpc`` collects it: with a callback, and in time."""

from postage import messaging
from stage import Answering, Processor, note, producer, raised


class Answers(Processor):
    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content, reply_func):
        reply_func(content['parameters'])

    @messaging.RpcHandler('command', 'silence')
    def rpc_silence(self, content, reply_func):
        pass


with Answering(Answers):
    asking = producer()
    seen = []
    queue = asking.rpc_echo('text', _queue_only=True)
    (reply,) = asking.consume_rpc(queue, callback=lambda body: seen.append(body['content']), timeout=-1)
    note(reply.body['content'], seen)
    queue = asking.rpc_silence(_queue_only=True)
    note(raised(asking.consume_rpc, queue, timeout=0.3))
