"""Postage: network components that talk by AMQP messages, on pika and RabbitMQ.

``from postage import messaging`` is the public door; ``from postage import microthreads`` has the scheduler.
"""

__version__ = '2.0.0'
