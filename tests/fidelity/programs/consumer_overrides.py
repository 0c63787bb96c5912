"""Overridden ``ack``, ``reject``, ``queue_bind``, ``add_eqk``, ``decode``, ``rpc_reply`` of a consumer are called."""

from postage import messaging
from stage import Answering, Consumer, Processor, handle, note, producer

calls = []


class Own(Consumer):
    def queue_bind(self, exchange_class, queue, key, **kwds):
        calls.append(('queue_bind', exchange_class.name, queue, key, kwds))
        super().queue_bind(exchange_class, queue, key, **kwds)

    def add_eqk(self, eqk):
        calls.append(('add_eqk', len(eqk)))
        super().add_eqk(eqk)

    def decode(self, data):
        body = super().decode(data)
        calls.append(('decode', body['name']))
        return body

    def ack(self, method):
        calls.append(('ack', method.routing_key))
        super().ack(method)

    def reject(self, method, requeue):
        calls.append(('reject', method.routing_key, requeue))
        super().reject(method, requeue)

    def rpc_reply(self, header, message):
        calls.append(('rpc_reply', bool(header.reply_to)))
        super().rpc_reply(header, message)


class Listening(Processor):
    consumer_class = Own

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        calls.append(('handler', content['parameters']))

    @messaging.MessageHandler('command', 'refuse')
    def msg_refuse(self, content):
        raise messaging.RejectMessage

    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content):
        raise KeyError

    @messaging.RpcHandler('command', 'ask')
    def rpc_ask(self, content, reply_func):
        reply_func(1)


handle(
    Listening,
    lambda producer: producer.message_echo(1),
    lambda producer: producer.message_refuse(),
    lambda producer: producer.message_fail(),
)
note(calls)
calls.clear()
with Answering(Listening):
    note(producer().rpc_ask().body['content'])
note(calls)
