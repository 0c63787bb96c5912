"""The future of an RPC is a future like any other, whether something looks at it before its result comes or not."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from types import SimpleNamespace
from typing import Any

import pytest

from postage.messaging import MessageResult, RpcFuture
from support.messaging import TIMEOUT

ROUNDS = 2000


class Client:
    """Notes what is abandoned."""

    def __init__(self) -> None:
        self.abandoned: list[str] = []

    def abandon(self, correlation_id: str) -> None:
        self.abandoned.append(correlation_id)


def make() -> RpcFuture:
    future = RpcFuture(SimpleNamespace(rpc_client=Client(), readership=None))  # type: ignore[arg-type]
    future.correlation_id = 'an-id'
    return future


def a_result(value: Any = 1) -> MessageResult:
    return MessageResult(value)


Step = Callable[['Future[Any]', list[Any]], Any]

STEPS: dict[str, Step] = {
    'done': lambda future, told: future.done(),
    'running': lambda future, told: future.running(),
    'cancelled': lambda future, told: future.cancelled(),
    'cancel': lambda future, told: future.cancel(),
    'set_result': lambda future, told: future.set_result(a_result()),
    'set_exception': lambda future, told: future.set_exception(KeyError('why')),
    'result': lambda future, told: Future.result(future, 0),
    'exception': lambda future, told: repr(future.exception(0)),
    'callback': lambda future, told: future.add_done_callback(lambda done: told.append(done is future)),
    'wait': lambda future, told: bool(concurrent.futures.wait([future], 0).done),
    'as_completed': lambda future, told: [each is future for each in concurrent.futures.as_completed([future], 0)],
    'state': lambda future, told: repr(future).split('state=')[1],
}


class Plain(Future[Any]):
    """A future of an executor, which tells at once what waits for it that it was cancelled."""

    def cancel(self) -> bool:
        if self.cancelled():
            return True
        return super().cancel() and not self.set_running_or_notify_cancel()


def taken(future: Future[Any], steps: list[str]) -> list[Any]:
    """What comes of these steps, each for itself, and which callbacks were called."""
    told: list[Any] = []
    found: list[Any] = []
    for step in steps:
        try:
            found.append(STEPS[step](future, told))
        except BaseException as error:
            found.append((type(error), str(error) if not isinstance(error, InvalidStateError) else ''))
    return [*found, told]


@pytest.mark.parametrize('number', range(20))
def test_whatever_is_done_with_it_comes_out_as_with_a_plain_future(number: int) -> None:
    seed = int(os.environ.get('SEED') or random.randrange(2**32))
    print(f'SEED={seed}')
    dice = random.Random(seed + number)
    for _ in range(200):
        steps = dice.choices(list(STEPS), k=dice.randint(1, 7))
        assert taken(make(), steps) == taken(Plain(), steps), steps


def test_a_future_that_nothing_looked_at_is_done_by_its_result() -> None:
    future = make()
    future.set_result(a_result(5))
    assert (future.done(), future.cancelled(), future.exception(), future.cancel()) == (True, False, None, False)
    assert future.value() == 5
    with pytest.raises(InvalidStateError):
        future.set_result(a_result(6))
    assert future.value() == 5


def test_a_cancelled_one_takes_no_result_and_tells_the_responder() -> None:
    future = make()
    assert future.cancel()
    with pytest.raises(InvalidStateError):
        future.set_result(a_result())
    assert future.cancelled()
    client: Any = future._connection.rpc_client
    assert client.abandoned == ['an-id']


def test_an_attribute_that_it_does_not_have_is_told_as_of_any_object() -> None:
    with pytest.raises(AttributeError, match="'RpcFuture' object has no attribute 'colour'"):
        make().colour  # noqa: B018


def test_a_coroutine_awaits_one_that_was_done_before_and_one_that_is_done_later() -> None:
    before, later = make(), make()
    before.set_result(a_result('before'))

    async def both() -> list[Any]:
        asyncio.get_running_loop().call_later(0.01, later.set_result, a_result('later'))
        found = await asyncio.gather(asyncio.wrap_future(before), asyncio.wrap_future(later))
        return [each.value for each in found]

    assert asyncio.run(both()) == ['before', 'later']


def test_a_look_and_a_result_that_come_together_miss_each_other_never() -> None:
    """Two threads meet at each future; switching is made as frequent as it can be."""
    futures = [make() for _ in range(ROUNDS)]
    told: list[RpcFuture] = []
    kept: list[bool] = []
    barrier = threading.Barrier(2)

    def finish() -> None:
        for future in futures:
            barrier.wait(TIMEOUT)
            try:
                future.set_result(a_result())
            except InvalidStateError:
                kept.append(False)
            else:
                kept.append(True)

    finisher = threading.Thread(target=finish)
    finisher.start()
    cancelled = 0
    for number, future in enumerate(futures):
        barrier.wait(TIMEOUT)
        if number % 2:
            future.add_done_callback(told.append)  # type: ignore[arg-type]
        elif future.cancel():
            cancelled += 1
            assert future.cancelled()
    finisher.join(TIMEOUT)
    assert told == futures[1::2]
    assert kept.count(False) == cancelled == sum(future.cancelled() for future in futures)
    assert all(future.done() for future in futures)
