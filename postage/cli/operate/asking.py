"""Questions to many components at once, and the answers of those that give one in time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from postage import errors
from postage.messaging import (
    ControlExchange,
    Fingerprint,
    GenericProducer,
    MessageCommand,
    MessageResult,
    RpcCommand,
    control_key,
)

LEAST_CONNECT_SECONDS = 2.0  # that a broker is waited for, however short the time-out


@dataclass
class Answer:
    """What one component has answered.

    :ivar value: the answer; ``None`` where it is an error
    :ivar error: why there is none
    :ivar seconds: how long it took
    """

    fingerprint: dict[str, Any]
    value: Any
    error: str | None
    seconds: float

    @property
    def name(self) -> str:
        """The component's name."""
        return str(self.fingerprint.get('name') or '')

    @property
    def address(self) -> str:
        """Its own address."""
        known = self.fingerprint
        process = f'{known.get("pid")}@{known.get("host")}'
        return f'{self.name}:{process}' if self.name else process

    @property
    def who(self) -> str:
        """The component, in a word: ``name pid@host``."""
        known = self.fingerprint
        return f'{self.name or "(no name)"} {known.get("pid")}@{known.get("host")}'


@dataclass
class Expected:
    """Who has to answer: so many, or these names, each as often as it is there.

    :ivar number: how many; ``None`` where that is not known, and all have the whole time
    """

    number: int | None = None
    names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, text: str | None) -> Expected:
        """What ``--expect`` says."""
        if text is None:
            return cls()
        if text.isdecimal() and int(text):
            return cls(int(text))
        names = [name.strip() for name in text.split(',') if name.strip()]
        if not names or text.isdecimal():
            raise click.UsageError(f'--expect {text!r:.80} names no component')
        return cls(len(names), names)

    def silent(self, answers: list[Answer]) -> list[str]:
        """Who has not answered, as far as names are known; else how many."""
        missing = list(self.names)
        for answer in answers:
            for known in (answer.name, answer.who.rpartition(' ')[2]):
                if known in missing:
                    missing.remove(known)
                    break
        if not self.names and self.number is not None and len(answers) < self.number:
            return [f'{self.number - len(answers)} of {self.number}']
        return missing

    def is_met(self, answers: list[Answer]) -> bool:
        """Whether no further answer is to be waited for."""
        return self.number is not None and len(answers) >= self.number and not self.silent(answers)


class Operator(GenericProducer):
    """Asks, calls and sends. Its one call, and its one message, take the name of what is sent."""

    eks = [(ControlExchange, 'all')]
    mandatory = True
    persistent = False
    max_retry = 0

    def build_rpc_call(self, name: str, parameters: Any) -> RpcCommand:
        """A request by that name."""
        return RpcCommand(name, parameters)

    def build_message_send(self, name: str, parameters: Any) -> MessageCommand:
        """A command by that name."""
        return MessageCommand(name, parameters)


@contextlib.contextmanager
def operator(timeout: float, **attributes: Any) -> Iterator[Operator]:
    """A producer for the length of a ``with``. A broker that is down is not waited for longer than the time-out says.

    :param attributes: class attributes that it is to have
    :raises errors.BrokerError: there is no broker
    """
    os.environ['POSTAGE_CONNECT_TIMEOUT'] = f'{max(timeout, LEAST_CONNECT_SECONDS):g}'
    cls = type('Operator', (Operator,), {'rpc_timeout': timeout, 'publish_timeout': max(timeout, 1.0), **attributes})
    with cls(Fingerprint('postage')) as producer:
        yield producer


def ask(
    producer: Operator, question: str, address: str, timeout: float, expected: Expected | None = None
) -> list[Answer]:
    """Ask all components at an address, and return the answers that come in time, in their order.

    Blocks for the whole time, unless it is known what has to answer. Where the exchange passes the question on to
    no queue, there is no answer at once. What would be answered later is dropped.

    :raises errors.TimeoutError: the question did not reach the broker, or the way back was lost
    """
    began = time.monotonic()
    answers: list[Answer] = []
    expected = expected or Expected()
    with producer.rpc_gather_call(question, {}, _key=control_key(address), _timeout=timeout) as gathering:
        for reply in gathering:
            answers.append(_answer_of(reply, time.monotonic() - began))
            if expected.is_met(answers):
                break
    failure = gathering.replies.failure
    if failure is not None and not isinstance(failure, errors.Unroutable):
        raise failure
    return answers


def _answer_of(reply: MessageResult, seconds: float) -> Answer:
    content, fingerprint = reply.body['content'], dict(reply.responder)
    if content.get('type') == 'success':
        return Answer(fingerprint, content.get('value'), None, seconds)
    return Answer(fingerprint, None, str(content.get('message')), seconds)


def in_order(answers: Iterable[Answer]) -> list[Answer]:
    """The answers that are no errors, by name, host and process; one that says nothing becomes an error."""
    told = [answer for answer in answers if answer.error is None]
    for answer in told:
        if not isinstance(answer.value, dict):
            answer.error = 'the answer is malformed'
    told = [answer for answer in told if answer.error is None]
    return sorted(told, key=lambda answer: (answer.name, str(answer.fingerprint.get('host')), _pid(answer)))


def _pid(answer: Answer) -> int:
    pid = str(answer.fingerprint.get('pid'))
    return int(pid) if pid.isdecimal() and len(pid) < 12 else 0
