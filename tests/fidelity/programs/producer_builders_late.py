"""A builder that is added to the class or the instance later is used from then on."""

from postage import messaging
from stage import FINGERPRINT, Answering, Processor, Producer, handle, note


class Late(Producer):
    pass


class Listening(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note('echo', content)

    @messaging.MessageHandler('command', 'built')
    def msg_built(self, content):
        note('built', content)

    @messaging.RpcHandler('command', 'ask')
    def rpc_ask(self, content, reply_func):
        reply_func(content['parameters'])


def send(producer):
    late = Late(FINGERPRINT)
    late.message_echo('before')
    Late.build_message_echo = lambda self, text: messaging.MessageCommand('built', text)
    late.message_echo('class')
    late.build_message_echo = lambda text: messaging.MessageCommand('built', [text])
    late.message_echo('instance')
    del late.build_message_echo, Late.build_message_echo
    late.message_echo('after')


handle(Listening, send)
with Answering(Listening):
    asking = Late(FINGERPRINT)
    note(asking.rpc_ask('before').body['content'])
    Late.build_rpc_ask = lambda self, text: messaging.RpcCommand('ask', [text])
    note(asking.rpc_ask('class').body['content'])
