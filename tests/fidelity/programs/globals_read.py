"""``messaging.global_hup`` and its kin read as the values that count."""

import os

from postage import messaging
from stage import Consumer, Producer, note

note(dict(messaging.global_hup), messaging.global_hup['host'], sorted(messaging.global_hup))
note(messaging.global_vhost == os.environ['POSTAGE_VHOST'], messaging.global_user, messaging.global_password)
note(dict(messaging.GenericProducer.hup) == dict(messaging.GenericConsumer.hup) == dict(messaging.global_hup))
copied = messaging.global_hup.copy()
copied.update(user='somebody')
note(copied['user'], messaging.global_hup['user'], messaging.global_hup.get('none'), 'host' in messaging.global_hup)
producer = Producer({}, dict(messaging.global_hup), messaging.global_vhost)
note(producer.vhost == messaging.global_vhost, producer.hup['user'])
consumer = Consumer([], dict(messaging.GenericConsumer.hup, host='127.0.0.1'))
note(consumer.vhost == messaging.global_vhost, consumer.hup['host'])
