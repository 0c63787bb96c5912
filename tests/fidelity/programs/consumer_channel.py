"""``channel`` of a consumer and a producer takes pika's methods: ``basic_qos``, ``queue_declare``, ``basic_get``."""

from postage import messaging
from stage import EQK, FINGERPRINT, Consumer, note, producer


class Limited(messaging.MessageProcessor):
    consumer_class = Consumer

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.consumer.channel.basic_qos(prefetch_count=2)


limited = Limited(FINGERPRINT, EQK, None, None)
channel = producer().channel
declared = channel.queue_declare(queue='own', durable=True)
note(declared.method.queue, declared.method.message_count)
channel.queue_bind(queue='own', exchange='stage-exchange', routing_key='own')
channel.basic_publish(exchange='stage-exchange', routing_key='own', body=b'{"any": 1}')
method, properties, body = channel.basic_get(queue='own')
note(method.routing_key, body.decode())
channel.basic_ack(delivery_tag=method.delivery_tag)
note(type(channel.queue_purge(queue='own').method).__name__)
note(type(channel.queue_delete(queue='own').method).__name__)
