"""What a producer is given as its fingerprint is laid over its own: all six keys travel."""

from stage import Processor, Producer, handle, messaging, note


class Reading(Processor):
    @messaging.MessageHandlerFullBody('command', 'echo')
    def msg_echo(self, body):
        note(sorted(body['fingerprint']), body['fingerprint']['name'], body['fingerprint']['type'])


def send(producer):
    short = Producer({'name': 'app', 'type': 'x', 'colour': 'green'})
    short.message_echo()
    short.fingerprint['name'] = 'renamed'
    short.message_echo()
    short.fingerprint = {'name': 'alone', 'type': 'y'}
    short.message_echo()


handle(Reading, send)
