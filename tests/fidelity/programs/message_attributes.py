"""Any attribute may be set on a message, ``body`` too, before it is sent."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, handle, note


class TaggingProducer(Producer):
    def build_message_tagged(self, text):
        message = messaging.MessageCommand('tagged', text)
        message.tag = 'urgent'
        note(message.tag)
        return message

    def build_message_renamed(self, text):
        message = messaging.MessageCommand('echo', text)
        message.body['name'] = 'renamed'
        message.body['content']['more'] = True
        message.body['_reserved']['hop'] = 1
        return message

    def build_message_replaced(self, text):
        message = messaging.Message()
        message.body = messaging.MessageCommand('tagged', text).body
        return message


class Reading(Processor):
    @messaging.MessageHandler('command', 'tagged')
    def msg_tagged(self, content):
        note('tagged', content)

    @messaging.MessageHandlerFullBody('command', 'renamed')
    def msg_renamed(self, body):
        note('renamed', body)


tagging = TaggingProducer(FINGERPRINT)
handle(
    Reading,
    lambda producer: tagging.message_tagged('a'),
    lambda producer: tagging.message_renamed('b'),
    lambda producer: tagging.message_replaced('c'),
)
