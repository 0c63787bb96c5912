"""``queue_bind(exchange_class=…)`` and ``queue_unbind(exchange_class=…)``.

Gone: the names are those of the documentation: ``queue_bind(exchange=…, queue=…, key=…)``; most programs give none.
"""

from stage import Consumer, StageExchange, note, raised

consumer = Consumer([], None, None)
bind = raised(consumer.queue_bind, exchange_class=StageExchange, queue='q', key='k')
note(bind)  # "TypeError"
