"""``conn_broker`` as a connection of pika: ``add_timeout``, ``process_data_events``, ``sleep``.

Gone: the connection is Postage's, and has a thread of its own. There are ``processor.add_timeout()``,
``time.sleep()``, and ``channel`` for pika's methods.
"""

from stage import note, producer

note(hasattr(producer().conn_broker, 'process_data_events'))  # false
