"""The way to the broker. pika's connections are known here and nowhere else.

``connection.py``
    a connection that heals itself, on an I/O thread of its own
``registry.py``
    the connections of this process, and who holds them
``traffic.py``
    when a connection sends, and which thread reads it
``waiting.py``
    how a thread waits for what a connection brings, and reads meanwhile
``transport.py``
    the seam in pika: sockets in and out, beside pika's own handling
``fallback.py``
    the same by pika's public API alone
``io_services.py``
    what pika's way to sockets does not expect
``wire.py``
    the codec: frames made, frames cut
``channel.py``
    a channel that is opened again, and the operations on it
``publishing.py``
    messages out: the window, confirms, receipts
``consuming.py``
    deliveries in, acknowledgements out; the channel of RPC's caller
``topology.py``
    what was declared, so that it can be declared again
"""
