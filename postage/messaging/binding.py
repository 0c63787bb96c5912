"""Queues bound to exchanges: declared, bound and left at any time. What is delivered from them is not known here."""

from __future__ import annotations

from typing import Any

from postage import errors
from postage.amqp.control import bind, declare_exchange, declare_queue, unbind
from postage.amqp.steps import Steps
from postage.amqp.topology import Binding, Queue
from postage.messaging.connected import Connected
from postage.messaging.declarations import check_eqk, check_queue, warn_of_leftover
from postage.messaging.exchanges import Exchange, check_exchange
from postage.printable import shown


class QueueBinder(Connected):
    """Declares exchanges and queues on its connection, binds them, and remembers that, for it to be restored.

    Whether it consumes from a queue, a subclass decides in :meth:`_consume_steps` and :meth:`_leave_steps`.
    """

    durable_queues: bool = True

    def add_eqk(self, eqk: Any) -> None:
        """Declare more exchanges, queues and bindings; where it is consuming they take effect at once. Blocks."""
        self._check_open()
        for exchange, queue, key in list(check_eqk(eqk, 'eqk')):
            checked = check_queue(queue, {}, 'eqk')
            # Programs of 1.2.1 override queue_bind, and get what it got: a name, and flags.
            spelled = {} if isinstance(queue, str) else {part: queue[part] for part in queue if part != 'flags'}
            self.queue_bind(exchange, spelled if len(spelled) > 1 else checked.name, key, **checked.flags)

    @property
    def qk_list(self) -> list[tuple[str, str]]:
        """The queues that it consumes from, each with the keys that it is bound by."""
        return [(binding.queue, binding.routing_key) for binding in self.topology.bindings]

    def queue_bind(self, exchange: type[Exchange] | Exchange, queue: Any, key: str, **flags: Any) -> None:
        """Declare an exchange and a queue and bind them; where it is consuming it consumes from it at once. Blocks.

        :param queue: a name, or ``{'name': …, 'flags': {…}}``
        :param flags: flags of ``queue_declare``
        :raises errors.ConfigurationError: an argument has the wrong shape
        :raises errors.DeclarationMismatch: it exists with other flags than those spelled out
        """
        self._check_open()
        _check_key(key)
        self._bind(check_exchange(exchange, 'queue_bind'), check_queue(queue, flags, 'queue_bind'), key)

    def queue_declare(self, queue: Any, **flags: Any) -> None:
        """Declare a queue and bind it to nothing; where it is consuming it consumes from it at once. Blocks.

        :param queue: a name, or ``{'name': …, 'flags': {…}}``
        :param flags: flags of ``queue_declare``
        :raises errors.ConfigurationError: an argument has the wrong shape
        :raises errors.DeclarationMismatch: it exists with other flags than those spelled out
        """
        self._check_open()
        declared = self._known(check_queue(queue, flags, 'queue_declare'))
        self._connection.ask(lambda: self._declare_steps(declared))

    def queue_unbind(self, exchange: type[Exchange] | Exchange, queue: Any, key: str) -> None:
        """Remove a binding. The queue stays, and is consumed from as before. Blocks."""
        self._check_open()
        _check_key(key)
        name = check_queue(queue, {}, 'queue_unbind').name
        binding = Binding(name, check_exchange(exchange, 'queue_unbind').name, key)
        self._connection.ask(lambda: unbind(self._connection.control, binding))
        if binding in self.topology.bindings:
            self.topology.bindings.remove(binding)

    def queue_leave(self, queue: Any) -> None:
        """Stop consuming from one queue, which stays as it is for others. Blocks.

        What it has already delivered is handled and settled as usual.
        """
        self._check_open()
        name = check_queue(queue, {}, 'queue_leave').name
        self.topology.queues.pop(name, None)
        self.topology.bindings = [binding for binding in self.topology.bindings if binding.queue != name]
        self._connection.ask(lambda: self._leave_steps(name))

    def _bind(self, exchange: type[Exchange] | Exchange, queue: Queue, key: str) -> None:
        declared = self._known(queue)
        binding = Binding(queue.name, exchange.name, key)
        parameters = exchange.parameters
        self._connection.ask(lambda: self._bind_steps(parameters, declared, binding))

    def _known(self, queue: Queue) -> Queue:
        """A queue with its flags complete; the one that was declared before, where it is the same."""
        queue.flags.setdefault('durable', self.durable_queues)
        known = self.topology.queues.get(queue.name)
        if known is not None and (not queue.spelled or known.flags == queue.flags):
            return known
        warn_of_leftover(queue)
        return queue

    def _bind_steps(self, exchange: dict[str, Any], queue: Queue, binding: Binding) -> Steps:
        control, topology = self._connection.control, self.topology
        if exchange['exchange'] not in topology.exchanges:
            yield from declare_exchange(control, exchange)
            topology.exchanges[exchange['exchange']] = exchange
        yield from self._declare_steps(queue, binding)

    def _declare_steps(self, queue: Queue, binding: Binding | None = None) -> Steps:
        control, topology = self._connection.control, self.topology
        if topology.queues.get(queue.name) is not queue:
            self._connection.topologies.check_exclusive(queue, topology)
            yield from declare_queue(control, queue)
            topology.queues[queue.name] = queue
        if binding is not None and binding not in topology.bindings:
            yield from bind(control, binding)
            topology.bindings.append(binding)
        yield from self._consume_steps(queue.name)

    def _consume_steps(self, queue: str) -> Steps:
        """Steps after a queue was declared or bound, on the I/O thread. To be overridden."""
        yield from ()

    def _leave_steps(self, queue: str) -> Steps:
        """Steps after a queue was left, on the I/O thread. To be overridden."""
        yield from ()


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise errors.ConfigurationError(f'a routing key must be text, not {shown(key)}')
