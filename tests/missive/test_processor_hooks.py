"""Hooks and state on a ``MessageProcessor``, and its test client."""

from __future__ import annotations

from typing import Any

import pytest

from postage import messaging, microthreads


class Hooked(messaging.MessageProcessor):
    def __init__(self) -> None:
        self.told: list[Any] = []
        super().__init__({})

    def before_processing(self) -> None:
        self.state.database = 'db'
        self.told.append('startup')

    def after_processing(self) -> None:
        self.told.append('shutdown')

    def before_handling(self, handling: Any) -> None:
        handling.state.name = handling.body['name']
        self.told.append('before')
        if handling.body['content']['parameters'] == 'before':
            raise ValueError('hooked')

    def after_handling(self, handling: Any) -> None:
        self.told.append(f'after {handling.state.name}')
        if handling.body['content']['parameters'] == 'after':
            raise ValueError('hooked')

    @messaging.MessageHandler('command', 'plain')
    def msg_plain(self, content: dict[str, Any]) -> None:
        self.told.append(self.state.database)

    @messaging.MessageHandler('command', 'generator')
    def msg_generator(self, content: dict[str, Any]) -> Any:
        yield microthreads.sleep(0.01)
        self.told.append(self.state.database)

    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content: dict[str, Any]) -> None:
        raise KeyError

    @messaging.RpcHandler('command', 'plain')
    def rpc_plain(self, content: dict[str, Any], reply_func: Any) -> str:
        return 'answered'


@pytest.mark.parametrize('name', ['plain', 'generator'])
def test_hooks_run_around_handlers_of_every_colour(name: str) -> None:
    with Hooked.test_client() as client:
        told = client.processor.told  # type: ignore[attr-defined]
        client.send(messaging.MessageCommand(name))
        assert told == ['startup', 'before', 'db', f'after {name}']
    assert told[-1] == 'shutdown'


def test_the_after_hook_runs_where_a_handler_raised() -> None:
    with Hooked.test_client() as client:
        client.send(messaging.MessageCommand('fail'))
        assert client.processor.told[-1] == 'after fail'  # type: ignore[attr-defined]


@pytest.mark.parametrize('which', ['before', 'after'])
@pytest.mark.parametrize('name', ['plain', 'generator'])
def test_a_hook_that_raises_fails_the_message(which: str, name: str) -> None:
    with Hooked.test_client() as client:
        message = messaging.MessageCommand(name, which)
        client.send(message)
        assert (client.acked, client.rejected) == ([], [message])
        assert ('db' in client.processor.told) == (which == 'after')  # type: ignore[attr-defined]


def test_the_caller_is_told_of_a_hook_that_raised() -> None:
    with Hooked.test_client() as client:
        reply = client.send(messaging.RpcCommand('plain', 'before'))
        assert reply is not None
        assert reply.body['content']['value'] == 'ValueError'
