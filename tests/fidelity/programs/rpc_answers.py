"""What an RPC handler answers with: a result, an error, an exception, a plain value, or what it raises."""

from postage import messaging
from stage import Answering, Processor, note, producer


class Answers(Processor):
    @messaging.RpcHandler('command', 'result')
    def rpc_result(self, content, reply_func):
        reply_func(messaging.MessageResult(content['parameters'], 'fine'))

    @messaging.RpcHandler('command', 'error')
    def rpc_error(self, content, reply_func):
        reply_func(messaging.MessageResultError('broken'))

    @messaging.RpcHandler('command', 'exception')
    def rpc_exception(self, content, reply_func):
        reply_func(messaging.MessageResultException('KeyError', 'x'))

    @messaging.RpcHandler('command', 'plain')
    def rpc_plain(self, content, reply_func):
        reply_func([1, None, 'text'])

    @messaging.RpcHandler('command', 'raise')
    def rpc_raise(self, content, reply_func):
        raise ValueError('so it is')


with Answering(Answers):
    asking = producer()
    for reply in (
        asking.rpc_result({'a': 1}),
        asking.rpc_error(),
        asking.rpc_exception(),
        asking.rpc_plain(),
        asking.rpc_raise(),
    ):
        note(type(reply).__name__, bool(reply), reply.body['content'], reply.type, reply.name, reply.result_type)
