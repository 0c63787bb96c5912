"""Applications that can be addressed: by name, by host, by process, by group, all of them or one in turn.

Three queues stand behind each application: ``sid``, shared by all of its name; ``hid``, shared by all of its name on
its host; and ``uid``, its own. The keys on :class:`GenericApplicationExchange`:

=======================  ==========================================  ==================
key                      reaches                                     queue
=======================  ==========================================  ==================
``{name}``               every application of that name              each one's ``uid``
``{name}/rr``            one of them, in turn                        ``sid``
``@{host}``              every application on that host              each one's ``uid``
``{name}@{host}``        every one of that name on that host         each one's ``uid``
``{name}@{host}/rr``     one of them, in turn                        ``hid``
``{pid}@{host}``         that one                                    its ``uid``
``{name}#{group}``       every one of that name in the group         each one's ``uid``
``{name}#{group}/rr``    one of them, in turn                        ``{name}#{group}``
=======================  ==========================================  ==================
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from postage import errors
from postage.messaging import Exchange, MessageHandler, MessageProcessor, MessageResult, RpcHandler
from postage.messaging.fingerprint import as_fingerprint_dict
from postage.printable import shown
from postage.secret import Secret
from postage.settings import Hup

logger = logging.getLogger('postage')

SHARED_QUEUE_EXPIRES = 24 * 60 * 60  # seconds after its last consumer, so that no old name is left for ever


class GenericApplicationExchange(Exchange):
    """The exchange on which applications are addressed."""

    name = 'generic-application-exchange'
    exchange_type = 'direct'
    passive = False
    durable = True
    auto_delete = False


class NullProducer:
    """Stands in for a producer: any ``message_*`` call is accepted and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return lambda *args, **kwds: None


class GenericApplication(MessageProcessor):
    """A processor that answers to its name, its host, its process and its groups.

    :param fingerprint: a ``Fingerprint`` or its dictionary, with a name
    :param vhost: which virtual host of the broker
    :param groups: names of the groups to be in from the start
    :param hup: which broker
    :raises errors.DuplicateApplication: another one with this pid and host is alive
    :raises errors.ConfigurationError: the fingerprint lacks name, pid or host, or a group's name is not text

    :cvar exchange_class: the exchange it is addressed on
    :cvar logging_producer: where subclasses send what they have to log; accepts any call until it is replaced
    :ivar sid: name of the queue shared by all applications of this name
    :ivar hid: name of the queue shared by those on this host
    :ivar uid: name of its own queue
    :ivar groups: names of the groups it is in
    """

    exchange_class: ClassVar[type[Exchange]] = GenericApplicationExchange
    logging_producer: Any = NullProducer()
    control = True

    def __init__(
        self, fingerprint: Any, vhost: str | None = None, groups: Sequence[str] | None = None, hup: Hup | None = None
    ) -> None:
        hup = Secret.of(hup)
        identity = as_fingerprint_dict(fingerprint)
        self.name, self.pid, self.host = (_part(identity, part) for part in ('name', 'pid', 'host'))
        self.sid = self.name
        self.hid = f'{self.name}@{self.host}'
        self.uid = f'{self.pid}@{self.host}'
        self.groups = list(dict.fromkeys(_group_name(group) for group in _checked_groups(groups)))
        try:
            super().__init__(identity, self._eqk(), hup, vhost)
        except errors.ResourceLocked as error:
            raise errors.DuplicateApplication(
                f'another application is {self.uid!r}: equal pid and host, as in containers that share a host name; '
                'give the fingerprint a host or pid of its own',
                error.reply_code,
                error.reply_text,
            ) from error

    def _eqk(self) -> list[Any]:
        own = {'name': self.uid, 'flags': {'exclusive': True, 'durable': False}}
        return [
            (
                self.exchange_class,
                [
                    (own, self.uid),
                    (own, self.name),
                    (own, f'@{self.host}'),
                    (own, self.hid),
                    (_shared(self.sid), f'{self.name}/rr'),
                    (_shared(self.hid), f'{self.hid}/rr'),
                ],
            ),
            *(element for group in self.groups for element in self._group_eqk(group)),
        ]

    def _group_eqk(self, group: str) -> list[Any]:
        key = f'{self.name}#{group}'
        return [(self.exchange_class, [(self.uid, key), (_shared(key), f'{key}/rr')])]

    def join_group(self, group: str) -> None:
        """Be reached by the group's keys from now on. Blocks."""
        if _group_name(group) not in self.groups:
            self.add_eqk(self._group_eqk(group))
            self.groups.append(group)
            if self._control is not None:
                self._control.join(group)

    def leave_group(self, group: str) -> None:
        """Be reached by the group's keys no more; the others in it are. Blocks."""
        if _group_name(group) in self.groups:
            key = f'{self.name}#{group}'
            self.consumer.queue_unbind(self.exchange_class, self.uid, key)
            self.consumer.queue_leave(key)
            self.groups.remove(group)
            if self._control is not None:
                self._control.leave(group)

    @RpcHandler('command', 'ping')
    def msg_ping(self, content: dict[str, Any], reply_func: Any) -> None:
        """Answer with the fingerprint."""
        reply_func(MessageResult(self.fingerprint))

    @MessageHandler('command', 'join_group')
    def msg_join_group(self, content: dict[str, Any]) -> None:
        """Join the group that ``parameters['group_name']`` names."""
        self.authorise('join_group')
        self.join_group(_group_of(content))

    @MessageHandler('command', 'leave_group')
    def msg_leave_group(self, content: dict[str, Any]) -> None:
        """Leave the group that ``parameters['group_name']`` names."""
        self.authorise('leave_group')
        self.leave_group(_group_of(content))


def _shared(name: str) -> dict[str, Any]:
    """A queue that several applications read, and that goes when none has done so for a day."""
    return {'name': name, 'flags': {'durable': True, 'arguments': {'x-expires': SHARED_QUEUE_EXPIRES * 1000}}}


def _part(identity: dict[str, Any], part: str) -> str:
    value = identity.get(part)
    if value is None or value == '':
        raise errors.ConfigurationError(
            'a GenericApplication needs a fingerprint with name, pid and host; '
            f'{part!r} is missing in {shown(identity, 300)}'
        )
    try:
        return str(value)
    except Exception:
        raise errors.ConfigurationError(f'the {part} of a fingerprint must be text, not {shown(value)}') from None


def _checked_groups(groups: Any) -> Sequence[Any]:
    if groups is None:
        return ()
    if isinstance(groups, (str, bytes)) or not isinstance(groups, (list, tuple, set, frozenset)):
        raise errors.ConfigurationError(f'groups must be a list of names, not {shown(groups)}')
    return list(groups)


def _group_name(group: Any) -> str:
    if not isinstance(group, str) or not group:
        raise errors.ConfigurationError(f'the name of a group must be text and not empty, not {shown(group)}')
    return group


def _group_of(content: dict[str, Any]) -> str:
    parameters = content.get('parameters')
    name = parameters.get('group_name') if isinstance(parameters, dict) else None
    return _group_name(name)
