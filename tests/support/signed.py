"""Programs with signing keys, and what somebody may do to their messages who can read and publish."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from postage import messaging
from support.canary import canary
from support.messaging import Bench, Echo, EchoExchange, EchoProducer, Got

OLD, NEW = f'old:{canary("-old-key")}', f'new:{canary("-new-key")}'
SIGNATURE = 'x-postage-signature'
VOUCHER = 'x-postage-voucher'


def signing(cls: type[Any], keys: Any = OLD, **attributes: Any) -> Any:
    """A class with keys, and other attributes."""
    return type(cls.__name__, (cls,), {'signing_keys': keys, **attributes})


SignedEcho = signing(Echo)
SignedProducer = signing(EchoProducer)


class Stranger(messaging.GenericProducer):
    """Somebody without a key."""

    eks = [(EchoExchange, 'echo-rk')]
    rpc_timeout = 1.0
    max_retry = 0


def capture(bench: Bench, send: Any, key: str = 'echo-rk') -> Got:
    """A message of a signed program, as one gets it who can read: ``send(producer)`` sends it."""
    queue = bench.collect(key=key)
    producer = bench.producer(SignedProducer)
    send(producer)
    got = bench.await_message(queue)
    bench.bare.queue_delete(queue)
    return got  # type: ignore[no-any-return]


def send_again(
    bench: Bench,
    got: Got,
    exchange: str = EchoExchange.name,
    key: str = 'echo-rk',
    data: bytes | None = None,
    headers: Mapping[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Publish a captured message, as it was but for these changes; a header that is ``None`` is taken away."""
    properties = copy.copy(got.properties)
    for name, value in changes.items():
        setattr(properties, name, value)
    changed = {**(properties.headers or {}), **(headers or {})}
    properties.headers = {name: value for name, value in changed.items() if value is not None}
    bench.bare.basic_publish(exchange, key, got.data if data is None else data, properties)
