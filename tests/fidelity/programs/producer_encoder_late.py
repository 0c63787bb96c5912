"""``producer.encoder`` and ``consumer.encoder`` may be replaced."""

import json

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, loop, note, processor


class Reversed:
    content_type = 'text/reversed'

    def encode(self, data):
        return json.dumps(data)[::-1]

    def decode(self, data):
        return json.loads((data if isinstance(data, str) else data.decode())[::-1])


class Listening(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note(content)


listening = processor(Listening)
listening.consumer.encoder = Reversed()
sending = Producer(FINGERPRINT)
sending.encoder = Reversed()
sending.message_echo('text')
sending.message_quit()
loop(listening)
