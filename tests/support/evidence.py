"""What came of a run of :mod:`support.chaos`: nothing confirmed is lost, and every duplicate has its explanation.

All of it is read from what the programs told, line by line, before their next step.

A message is identified by its ``message_id``; an item passes each queue as a message of its own. To see one twice is

redelivered
    the stage that had it before was killed, or lost its connection, before its acknowledgement was through; the broker
    says ``redelivered``
sent again
    the publisher lost its connection between the publishing and the confirm, and said so
handed on again
    the stage before had it twice, and published two messages for it
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from itertools import pairwise

from support.chaos import CAST, PRODUCERS, QUEUES, STAGES, Chain, Life

SENT_AGAIN = 'unconfirmed messages will be sent again'
CUT_OFF = ('(consuming) was lost', 'channel of the consumer', 'dropped ')
REFUSED = 'ERROR the broker refused message'
NEVER_SAID = re.compile('(ERROR|CRITICAL) |Traceback|Fatal Python error')  # a broker's INTERNAL_ERROR is a loss

REDELIVERED, RESENT, HANDED_ON = 'redelivered', 'sent again', 'handed on again'


@dataclass(frozen=True)
class Handling:
    """A stage has begun with a message.

    :ivar is_fresh: it was not marked as redelivered
    :ivar origin: the id that the item had in the first queue
    :ivar was_cut_off: whether the stage was killed, or lost its connection, at any time after that
    """

    item: str
    message_id: str
    is_fresh: bool
    origin: str
    was_cut_off: bool


@dataclass
class Queue:
    """What happened to the messages of a queue.

    :ivar publishings: how often each message may have been sent, by its id: once, and once more for each loss
    :ivar attempts: the same for those that were sent back to be tried again
    :ivar refusals: how often the broker refused what was published for each message, so that it was handled again
    :ivar confirmed: the items that were confirmed to whom published them
    :ivar handlings: by message id
    :ivar times: how often each item was handled
    """

    publishings: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    confirmed: set[str] = field(default_factory=set)
    handlings: dict[str, list[Handling]] = field(default_factory=lambda: defaultdict(list))
    times: Counter[str] = field(default_factory=Counter)


class Evidence:
    """What a chain that has ended leaves behind.

    :ivar faults: what is wrong, in words
    :ivar duplicates: how many there were, by explanation
    """

    def __init__(self, chain: Chain) -> None:
        self.faults: list[str] = []
        self.duplicates: Counter[str] = Counter()
        self._queues = {name: Queue() for name in QUEUES}
        self._published: Counter[str] = Counter()
        self._refused = 0
        self._answers = 0
        self._longest_outage = max((b - a for a, b in pairwise(sorted(chain.arrived.values()))), default=0.0)
        for name, life in chain.lives():
            self._read(name, life)
        for name in PRODUCERS:
            self._judge_end(name, chain.players[name].life)
        for name, queue in self._queues.items():
            self._judge_queue(name, queue)
        self._judge_items()

    def __str__(self) -> str:
        queue = self._queues['a']
        unconfirmed = self._published.keys() - queue.confirmed
        duplicates = ', '.join(f'{self.duplicates[how]} {how}' for how in (REDELIVERED, RESENT, HANDED_ON))
        return (
            f'{len(queue.confirmed)} messages confirmed and handled from end to end, {len(unconfirmed)} unconfirmed'
            f' ({len(unconfirmed & queue.times.keys())} arrived), {self._refused} refused and published again;'
            f' {len(self._queues["c"].attempts)} tried again;'
            f' {self._answers} calls answered;'
            f' duplicates: {duplicates}; longest outage {self._longest_outage:.1f} s'
        )

    # Reading

    def _read(self, name: str, life: Life) -> None:
        log = [entry.words[0] for entry in life.entries('log')]
        if life.entries('refused'):
            log = [line for line in log if REFUSED not in line]
        self.faults += [f'{name} said: {line}' for line in log if NEVER_SAID.match(line)]
        self._answers += len(life.entries('answered'))
        _, source, target = CAST[name] if name in STAGES else ('', '', QUEUES[0] if name in PRODUCERS else '')
        if source:
            self._read_handlings(self._queues[source], life)
        if target:
            self._read_publishings(self._queues[target], life)

    def _read_publishings(self, queue: Queue, life: Life) -> None:
        # An id is told after the publishing, and there may be a loss in between.
        losses = 0
        losses_before: dict[str, deque[int]] = defaultdict(deque)
        unconfirmed: set[str] = set()
        for entry in life.journal:
            if entry.what in ('publishes', 'handles'):
                losses_before[entry.words[0]].append(losses)
                self._published.update(entry.words[:1] if entry.what == 'publishes' else ())
            elif entry.what == 'published':
                item, message_id = entry.words
                queue.publishings[message_id] += 1 + losses - losses_before[item].popleft()
                unconfirmed.add(message_id)
            elif entry.what == 'confirmed':
                item, message_id = entry.words
                unconfirmed.discard(message_id)
                queue.confirmed.add(item)
            elif entry.what == 'refused':
                self._refused += 1
                unconfirmed.discard(entry.words[1])
            elif entry.what == 'log' and SENT_AGAIN in entry.words[0]:
                queue.publishings.update(unconfirmed)
                losses += 1

    def _read_handlings(self, queue: Queue, life: Life) -> None:
        was_cut_off, losses = life.was_killed, 0
        for entry in reversed(life.journal):
            if entry.what == 'log':
                losses += SENT_AGAIN in entry.words[0]
                was_cut_off = was_cut_off or any(words in entry.words[0] for words in CUT_OFF)
            elif entry.what == 'fails':
                queue.attempts[entry.words[1]] += 1 + losses
            elif entry.what == 'again':
                queue.refusals[entry.words[1]] += 1 + losses
            elif entry.what == 'handles':
                item, message_id, freshness, origin = entry.words
                handling = Handling(item, message_id, freshness == 'fresh', origin, was_cut_off)
                queue.handlings[message_id].append(handling)
                queue.times[item] += 1

    # Judging

    def _judge_end(self, name: str, life: Life) -> None:
        """Read what a producer has published, and see that one that ended in good order had everything confirmed."""
        published = {entry.words[0] for entry in life.entries('publishes')}
        for item in published - self._queues['a'].confirmed:
            self.faults.append(f'{item} was never confirmed, though {name} ended in good order')

    def _judge_queue(self, name: str, queue: Queue) -> None:
        for item in queue.confirmed - queue.times.keys():
            self.faults.append(f'{item} was confirmed for queue {name} and is lost')
        for message_id, handlings in queue.handlings.items():
            publishings = queue.attempts[message_id] or queue.publishings[message_id]
            publishings += queue.refusals[message_id] if publishings else 0
            self._judge_message(f'message {message_id} of queue {name}', handlings, publishings)

    def _judge_message(self, name: str, handlings: list[Handling], publishings: int) -> None:
        """See whether there is a reason for each time that it was handled."""
        if len({handling.item for handling in handlings}) > 1:
            self.faults.append(f'{name} is two messages: {handlings}')
        fresh = sum(handling.is_fresh for handling in handlings)
        cut_off = sum(handling.was_cut_off for handling in handlings)
        # Of a publisher that was killed before it could tell the id, nobody knows how often it has sent that.
        if publishings and fresh > publishings:
            self.faults.append(f'{name} was new {fresh} times and published {publishings} times: {handlings}')
        if publishings and len(handlings) > publishings + cut_off:
            self.faults.append(f'{name} was handled {len(handlings)} times, without a reason: {handlings}')
        resent = max(0, fresh - 1)
        self.duplicates[RESENT] += resent
        self.duplicates[REDELIVERED] += len(handlings) - 1 - resent

    def _judge_items(self) -> None:
        """Follow every item from end to end."""
        for item in self._queues['a'].confirmed - self._queues['c'].times.keys():
            self.faults.append(f'{item} was confirmed to its producer and has not come out at the end')
        origins: dict[str, set[str]] = defaultdict(set)
        possible: Counter[str] = Counter(self._published)  # once more for each time that it was refused
        for name, queue in self._queues.items():
            ids: dict[str, set[str]] = defaultdict(set)
            for message_id, handlings in queue.handlings.items():
                ids[handlings[0].item].add(message_id)
                origins[handlings[0].item].update(handling.origin for handling in handlings)
            for item, known in ids.items():
                self.duplicates[HANDED_ON] += len(known) - 1
                if len(known) > possible[item]:
                    self.faults.append(f'{item} is {len(known)} messages in queue {name}, {possible[item]} were sent')
            possible = queue.times
        for item, known in origins.items():
            if len(known) > 1:
                self.faults.append(f'{item} cannot be recognised at the end: {known}')
