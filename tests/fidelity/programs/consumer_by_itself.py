"""A consumer by itself: ``start_consuming(callback)``, its channel, ``eqk`` on the class, and ``stop_consuming()``."""

from stage import EQK, Consumer, note, producer


class Own(Consumer):
    eqk = EQK


consumer = Own()
sending = producer()
for number in range(3):
    sending.message_echo(number)


def callback(channel, method, header, body):
    decoded = consumer.decode(body)
    number = decoded['content']['parameters']
    note(number, method.exchange, method.routing_key, method.redelivered, header.content_type)
    if number == 0:
        channel.basic_ack(delivery_tag=method.delivery_tag)
    elif number == 1:
        consumer.reject(method, requeue=False)
    else:
        consumer.ack(method)
        consumer.stop_consuming()


consumer.start_consuming(callback)
note('stopped')
