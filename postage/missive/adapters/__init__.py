"""Adapters: the ways to transports. Each is imported by its own name, for it may need a package that others do not.

``base.Adapter``
    the base of them all
``running.RunnableAdapter``
    the base of those below, which have a ``run()``
``for_tests.TestAdapter``
    messages by hand: what ``processor.test_client()`` returns
``stdin.StdinAdapter``
    the lines of a file
``redis.RedisPubSubAdapter``
    Redis Pub/Sub; ``pip install postage[redis]``
``wsgi.WSGIAdapter``
    HTTP, under any WSGI server; ``pip install postage[wsgi]``
``rabbitmq.RabbitMQAdapter``
    queues of RabbitMQ, or of another AMQP 0-9-1 broker
"""
