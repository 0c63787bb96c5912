"""The way to the broker. pika's connections are known here and nowhere else.

Three layers; a module knows only those above it in this list.

Bytes, without state or I/O:

``frames.py``, ``cutter.py``, ``arguments.py``
    the codec: frames and properties made and read; what was read cut into deliveries and confirms; what a method of
    pika's is given seen to
``server.py``
    which broker it is, and what depends on that
``durations.py``, ``seen.py``
    how long things took, by buckets; a message as a test sees it

Threads and one socket:

``forks.py``, ``threads.py``, ``steps.py``, ``tick.py``, ``io_thread.py``
    what a forked child does first; what is known of the present thread; work written in sequence; the regular look; an
    I/O thread, and what others have it do
``link.py``, ``outbox.py``, ``turns.py``
    one socket under pika; when it is written to; which thread reads it

What is on a connection, and the connection:

``states.py``, ``streams.py``, ``topology.py``, ``channel.py``, ``retries.py``, ``control.py``
    what a connection is at; how far a stream was handled; what was declared; a channel that is opened again; retries
    that the broker delays; declaring, and blocking access
``publishing.py``, ``replies.py``, ``cancelled.py``
    messages out; requests out and replies in; the requests whose answer is wanted no more
``deliveries.py``, ``origins.py``, ``consumers.py``, ``consuming.py``
    one delivery; what is known of its queue; from which queues, and how far ahead; messages in
``attempts.py``, ``upkeep.py``, ``connection.py``, ``registry.py``
    attempts to connect; bindings that went away; the connection; all of them
``recording.py``
    connections that lead nowhere, to learn what a program declares

Words
-----
I/O thread
    the thread of one connection, on which pika lives. It reads and sends what no other thread does.
link
    one socket to the broker, under pika; a connection has one after the other.
turn
    the right to read a link. The I/O thread has it, or lends it to a waiting thread.
alarm, to ring
    what a thread waits by, and what ends its wait.
outbox, to submit, to flush
    where channels say that they have something to send; to say so; to send it.
batch
    messages handled one after the other; what they send goes out together at its end.
steps, to ask, to tell
    work on the I/O thread, written in sequence; to have it done and wait; to have it done.
window
    the messages that were accepted and are not settled yet.
to settle
    a message out: to learn that it was confirmed, or failed. A delivery: to acknowledge, reject or hand it back.
generation
    how often a channel has been opened. A delivery tag means something in its own generation only.
lane
    a channel, to the cutter.
"""
