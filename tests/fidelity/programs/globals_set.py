"""``messaging.global_hup['host'] = …`` and ``GenericProducer.hup['host'] = …`` count from then on."""

from postage import messaging
from stage import Consumer, Producer, note, raised

messaging.global_hup['user'] = 'nobody'
note(messaging.GenericProducer.hup['user'], messaging.global_hup['host'])
note(raised(Producer, {}))
note(raised(Consumer))
messaging.GenericProducer.hup['user'] = 'guest'
messaging.GenericConsumer.hup['password'] = 'guest'
messaging.global_hup.update({'host': '127.0.0.1'})
note(dict(messaging.global_hup))
note(type(Producer({})).__name__)
