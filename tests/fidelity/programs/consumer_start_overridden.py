"""A consumer that overrides ``start_consuming``, which the processor called.

Gone: a processor takes its messages in turns with others. Override ``start_consuming()`` of the processor, or its
``before_handling()`` and ``after_handling()``.
"""

from stage import Consumer, Processor, handle, note

seen = []


class Own(Consumer):
    def start_consuming(self, callback):
        seen.append('own')
        super().start_consuming(callback)


class Listening(Processor):
    consumer_class = Own


handle(Listening)
note(seen)  # []
