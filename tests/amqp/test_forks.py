"""A forked child starts over in the order that is stated, and whatever happens in it the parent goes on."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from postage.amqp import forks
from postage.amqp.forks import Stage, call_in_child
from support.programs import Program


def in_child(work: Callable[[], object]) -> str:
    """What a forked child writes of its work."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, str(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as output:
        text = output.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def test_callbacks_run_in_the_order_of_their_stages_and_within_a_stage_as_they_were_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forks, '_callbacks', [])
    calls: list[str] = []
    for name, stage in [
        ('connections', Stage.CONNECTIONS),
        ('locks', Stage.LOCKS),
        ('connections', Stage.CONNECTIONS),
        ('alarms', Stage.ALARMS),
        ('more locks', Stage.LOCKS),
        ('thread', Stage.THREAD),
    ]:
        call_in_child(stage, lambda name=name: calls.append(name))  # type: ignore[misc]
    assert in_child(lambda: ', '.join(calls)) == 'locks, more locks, thread, alarms, connections, connections'
    assert calls == []


MODULES_IN_ANY_ORDER = """
import sys
for module in sys.argv[1:]:
    __import__(module)
from postage.amqp import forks
print(*(f'{stage.name}:{callback.__module__}' for stage, callback in forks._callbacks))
"""


def test_every_module_that_has_to_start_over_has_its_stage_whatever_is_imported_first(
    run_program: Callable[..., Program],
) -> None:
    orders = [['postage.messaging.rpc'], ['postage.amqp.registry', 'postage.messaging'], ['postage.amqp.threads']]
    found: list[list[str]] = []
    for order in orders:
        program = run_program(MODULES_IN_ANY_ORDER, [*order, 'postage.messaging'])
        assert program.wait() == 0, program.output
        found.append(program.lines[-1].split())
    for callbacks in found:
        stages = [Stage[callback.partition(':')[0]] for callback in callbacks]
        assert stages == sorted(stages)
        assert set(callbacks) == set(found[0])
    assert {
        'LOCKS:postage.amqp.registry',
        'LOCKS:postage.amqp.publishing',
        'THREAD:postage.amqp.threads',
        'ALARMS:postage.amqp.turns',
        'CONNECTIONS:postage.amqp.connection',
    } <= set(found[0])
