"""The ways to transports; each is imported by its own name, so that nobody needs the packages of the others.

``stdin.StdinAdapter``
    the lines of a file
``redis.RedisPubSubAdapter``
    Redis Pub/Sub; ``pip install postage[redis]``
``wsgi.WSGIAdapter``
    HTTP, under any WSGI server; ``pip install postage[wsgi]``
``rabbitmq.RabbitMQAdapter``
    queues of RabbitMQ, or of another AMQP 0-9-1 broker
"""
