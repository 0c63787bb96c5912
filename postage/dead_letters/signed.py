"""Signatures of letters: they hold for the message as it was, at the time and place at which it was first sent."""

from __future__ import annotations

from dataclasses import replace

from postage import errors
from postage.messaging import properties as amqp
from postage.messaging.letters import DeadLetter
from postage.messaging.properties import SIGNATURE, VOUCHER, Properties
from postage.messaging.signing import Signatures


def is_signed(letter: DeadLetter) -> bool:
    """Whether a letter has a signature, right or wrong."""
    return SIGNATURE in letter.properties.get('headers', {})


def vouched(signatures: Signatures, properties: Properties, body: bytes, exchange: str, routing_key: str) -> Properties:
    """The properties of a letter that is sent, so that consumers with these keys take it, where they once would have.

    One that goes back to its queue is vouched for, and known to its receiver as the same message; one that goes
    elsewhere is signed anew. What is not signed, or not rightly, stays so. A copy.
    """
    try:
        signature = signatures.verify(properties, body)
    except errors.SignatureRefused:
        return properties
    if exchange:
        return signatures.again(properties, exchange, routing_key, body)
    headers = {**(properties.headers or {}), VOUCHER: signatures.vouch(signature, routing_key)}
    return Properties(**{**vars(properties), 'headers': headers})  # type: ignore[no-untyped-call]


def signed_again(signatures: Signatures, old: DeadLetter, body: bytes) -> DeadLetter:
    """A letter with another body, signed anew where its signature was right.

    :raises errors.SignatureRefused: it was not
    """
    properties = amqp.from_plain(old.properties)
    signature = signatures.verify(properties, old.body)
    changed = signatures.again(properties, signature.exchange, signature.routing_key, body)
    return replace(old, body=body, properties=amqp.as_plain(changed))
