"""The consumers of a channel, and the prefetch count that they began with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container
from concurrent.futures import Future
from typing import Any

from postage import errors
from postage.amqp.channel import Channel, never_called
from postage.amqp.origins import Origins
from postage.amqp.steps import Steps
from postage.amqp.topology import Topology


class Consumers:
    """One consumer for each queue that a channel consumes from. On the I/O thread.

    :param topology: what is known of the queues
    :param hand_back: has the broker deliver again what has come from some queues, and is not begun
    :ivar prefetch: messages that the broker sends ahead of their acknowledgement, as it was told; 0 for no limit
    :ivar most_prefetched: the greatest of these counts since the channel was opened
    :ivar wish: says the count that is wanted
    :ivar origins: what is known of the queues
    :ivar tags: queue → consumer tag
    :ivar attached: the queues whose consumers the broker has confirmed, and not ended since
    :ivar queues: consumer tag → queue, those that have ended included: what they fetched may still be on its way
    """

    def __init__(
        self, channel: Channel, topology: Topology, prefetch: int, hand_back: Callable[[Container[str]], None]
    ) -> None:
        self._channel = channel
        self._topology = topology
        self._hand_back = hand_back
        self.prefetch = self.most_prefetched = prefetch  # other threads look at them: an old count does no harm
        self.wish: Callable[[], int] = lambda: prefetch
        self.origins = Origins(topology)
        self.tags: dict[str, str] = {}
        self.attached: set[str] = set()
        # The thread that reads looks a tag up, which is one step of the interpreter. The tag is in here before the
        # broker hears of it, so no delivery comes too early.
        self.queues: dict[bytes, str] = {}
        self._is_resizing = False

    def begin_steps(self, queue: str) -> Steps:
        """Start to consume from a queue, now and after every reconnect. Does nothing where it does already."""
        if queue not in self.tags:
            self.tags[queue] = tag = self._new_tag(queue)
            if self._channel.is_open:
                try:
                    yield self._consume(queue, tag)
                    self.attached.add(queue)
                except errors.ChannelLost:
                    yield from self._channel.ensure_open_steps()  # which consumes from all its queues

    def end_steps(self, queue: str) -> Steps:
        """Stop consuming from a queue. What it has delivered is still to be settled."""
        tag = self.tags.pop(queue, None)
        self.attached.discard(queue)
        if tag is not None and self._channel.is_open:
            yield self._cancel(queue, tag)

    def pause_steps(self) -> Steps:
        """Stop consuming from all queues, and hand back what is not begun. What is in hand is settled as usual.

        A queue that deletes itself without a consumer keeps its one, and so does a stream, whose consumer has the
        position; what those have delivered stays.
        """
        ended = {queue for queue in self.tags if not self._needs_consumer(queue)}
        for queue in ended:
            yield from self.end_steps(queue)
        if self._channel.is_open:
            # What was on its way may come after the answer to the cancel, but not after this one.
            yield self._tell_prefetch()
            self._hand_back(ended)

    def _needs_consumer(self, queue: str) -> bool:
        declared = self._topology.queues.get(queue)
        return self.origins.is_stream(queue) or (declared is not None and bool(declared.flags.get('auto_delete')))

    def end_all_steps(self) -> Steps:
        """Stop consuming for good. At their end nothing more can come of what was begun before."""
        self.wish = lambda: self.prefetch  # no change of it begins another consumer, or hands something back
        for queue in list(self.tags):
            yield from self.end_steps(queue)
        if self._channel.is_open:
            yield self._tell_prefetch()  # done after whatever was under way when this began

    def set_up_steps(self) -> Steps:
        """Consume from all queues on a channel that was just opened, with the prefetch count wished for."""
        self.prefetch = self.most_prefetched = self.wish()
        if self.prefetch:
            yield self._tell_prefetch()
        # No delivery of an older generation is still to come.
        self.queues = {tag.encode(): queue for queue, tag in self.tags.items()}
        begun: set[str] = set()
        self.attached.clear()
        while missing := [queue for queue in self.tags if queue not in begun]:  # more may come meanwhile
            yield self._consume(missing[0], self.tags[missing[0]])
            begun.add(missing[0])
            self.attached.add(missing[0])
        if self.wish() != self.prefetch:
            self._channel.host.tell(self.resize_steps)  # it changed meanwhile, when the channel was not open yet

    def anew_steps(self, queue: str) -> Steps:
        """Consume from a queue again, under a new tag.

        The broker may still know the old one, and would end the connection (530).
        """
        self.tags[queue] = tag = self._new_tag(queue)
        yield self._consume(queue, tag)
        self.attached.add(queue)

    def resize_steps(self) -> Steps:
        """Change how many messages are sent ahead to what is wished for now.

        Several threads may change the wish at the same time. Each has these steps taken after its change, and they ask
        for the wish themselves, so the last change is the one that counts.

        A consumer keeps the prefetch count that it began with (https://www.rabbitmq.com/docs/consumer-prefetch), so
        each ends and a new one begins. The order of the messages holds.
        """
        if self._is_resizing:
            return  # the steps under way see the new number
        self._is_resizing = True
        try:
            while self._channel.is_open and (wanted := self.wish()) != self.prefetch:
                shrinks = 0 < wanted < self.prefetch or not self.prefetch
                self.prefetch = wanted
                self.most_prefetched = max(self.most_prefetched, wanted)
                yield from (self._shrink() if shrinks else self._grow())
        except (errors.ConnectionLost, errors.ChannelLost):
            pass  # it is opened again with the new number
        finally:
            self._is_resizing = False

    def _grow(self) -> Steps:
        """Begin new consumers before the old ones end, so that no queue which deletes itself is left without one."""
        yield self._tell_prefetch()
        for queue, tag in list(self.tags.items()):
            if self.origins.is_stream(queue):
                continue  # a second consumer would begin with what the first one has in hand
            if self.tags.get(queue) == tag:  # else it was ended meanwhile
                yield from self.anew_steps(queue)
                yield self._cancel(queue, tag)

    def _shrink(self) -> Steps:
        """End consumers, hand back what is not begun, to the place it came from, and begin new ones.

        What is fetched from a queue that no one else may read, or that would delete itself, stays.
        """
        ended = {queue: tag for queue, tag in self.tags.items() if self._is_shared(queue)}
        for queue, tag in ended.items():
            yield self._cancel(queue, tag)
        # What was on its way may come after the answer to the cancel, but not after this one.
        yield self._tell_prefetch()
        self._hand_back(ended)
        for queue, tag in ended.items():
            if self.tags.get(queue) == tag:
                yield from self.anew_steps(queue)

    def _is_shared(self, queue: str) -> bool:
        declared = self._topology.queues.get(queue)
        if declared is None or self.origins.is_stream(queue):
            return False
        return not (declared.flags.get('exclusive') or declared.flags.get('auto_delete'))

    def _new_tag(self, queue: str) -> str:
        tag = f'postage-{next(_tags)}'
        self.queues[tag.encode()] = queue
        return tag

    def _consume(self, queue: str, tag: str) -> Future[Any]:
        return self._channel.operate(
            'basic_consume',
            f'consume from queue {queue!r}',
            queue=queue,
            on_message_callback=never_called,
            consumer_tag=tag,
            arguments=self.origins.consume_arguments(queue, self._channel.host.server),
        )

    def _cancel(self, queue: str, tag: str) -> Future[Any]:
        return self._channel.operate('basic_cancel', f'stop consuming from queue {queue!r}', consumer_tag=tag)

    def _tell_prefetch(self) -> Future[Any]:
        return self._channel.operate('basic_qos', 'set the prefetch count', prefetch_count=self.prefetch)


_tags = itertools.count(1)
