"""The client of ``test_client()``: what a processor's own producers send is recorded, and no broker is needed."""

from __future__ import annotations

from typing import Any

import pytest

from postage import errors, messaging
from support.ports import free_ports


class AuditExchange(messaging.Exchange):
    name = 'audit'


class AuditProducer(messaging.GenericProducer):
    eks = [(AuditExchange, 'seen')]
    mandatory = True


class Auditor(messaging.MessageProcessor):
    def __init__(self, fingerprint: Any) -> None:
        super().__init__(fingerprint, [(AuditExchange, [('requests', 'request')])])
        self.producer = AuditProducer(fingerprint)

    @messaging.MessageHandler('command', 'look')
    def look(self, content: dict[str, Any]) -> None:
        self.producer.message_seen(content['parameters'], _headers={'origin': 'look'}).wait(1)

    @messaging.MessageHandler('command', 'late')
    def late(self, content: dict[str, Any]) -> None:
        with AuditProducer() as producer:
            producer.message_late(_eks=[(AuditExchange, 'a'), (AuditExchange, 'b')])

    @messaging.MessageHandler('command', 'thread')
    @messaging.Threaded
    def thread(self, content: dict[str, Any]) -> None:
        with AuditProducer() as producer:
            producer.message_threaded()

    @messaging.MessageHandler('command', 'ask')
    def ask(self, content: dict[str, Any]) -> None:
        self.producer.rpc_price()


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no broker."""
    (port,) = free_ports(1)
    monkeypatch.setenv('POSTAGE_URL', f'amqp://127.0.0.1:{port}/')
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.1')


def command(name: str, *parameters: Any) -> messaging.Message:
    return messaging.MessageCommand(name, *parameters)


def test_what_the_constructors_producer_sends_is_recorded_with_where_it_would_go() -> None:
    with Auditor.test_client({'name': 'auditor'}) as client:
        assert client.published == []
        client.send(command('look', 'a book'))
        (message,) = client.published
        assert client.rejected == []
    assert (message.exchange, message.routing_key) == ('audit', 'seen')
    assert message.body['content'] == {'parameters': 'a book'}
    assert message.body['fingerprint']['name'] == 'auditor'
    assert message.headers == {'origin': 'look'}
    assert message.properties.delivery_mode == 2


def test_what_a_handlers_own_producer_sends_is_recorded_once_for_each_exchange() -> None:
    with Auditor.test_client({}) as client:
        client.send(command('late'))
        assert [message.routing_key for message in client.published] == ['a', 'b']
        assert len(client.acked) == 1


def test_a_producer_in_a_thread_is_recorded_as_well() -> None:
    with Auditor.test_client({}) as client:
        client.send(command('thread'))
        assert [message.body['name'] for message in client.published] == ['threaded']


def test_an_rpc_of_a_handler_fails_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with Auditor.test_client({}) as client:
        client.send(command('ask'))
        assert len(client.rejected) == 1
    assert "RPC 'rpc_price' cannot be answered: there is no broker" in caplog.text


def test_a_program_that_traces_its_messages_needs_no_broker_either() -> None:
    pytest.importorskip('opentelemetry.trace')
    with Auditor.test_client({}) as client:
        client.send(command('look', 1))
        assert len(client.acked) == 1


def test_two_clients_record_apart() -> None:
    with Auditor.test_client({}) as one, Auditor.test_client({}) as two:
        one.send(command('look', 1))
        two.send(command('look', 2))
        assert [message.body['content']['parameters'] for message in one.published] == [1]
        assert [message.body['content']['parameters'] for message in two.published] == [2]


def test_a_producer_of_the_tests_own_is_not_recorded() -> None:
    with Auditor.test_client({}), pytest.raises(errors.BrokerUnavailable):
        AuditProducer()


def test_the_connections_are_given_back() -> None:
    client = Auditor.test_client({})
    client.close()
    client.close()
    assert client.published == []


def test_calls_gatherings_and_futures_of_handlers_are_refused_and_producers_close() -> None:
    class Asking(messaging.MessageProcessor):
        @messaging.MessageHandler('command', 'wait')
        def wait(self, content: Any) -> None:
            with AuditProducer() as producer:
                producer.rpc_price()

        @messaging.MessageHandler('command', 'future')
        def future(self, content: Any) -> Any:
            with AuditProducer() as producer:
                yield producer.rpc_future_price()

        @messaging.MessageHandler('command', 'gather')
        def gather(self, content: Any) -> None:
            with AuditProducer() as producer:
                list(producer.rpc_gather_price())

        def after_handling(self, handling: Any) -> None:
            told.append((handling.outcome, type(handling.exception).__name__))

    told: list[tuple[str, str]] = []
    with Asking.test_client({}) as client:
        for name in ('wait', 'future', 'gather'):
            client.send(command(name))
        assert told == [('dead', 'ConfigurationError')] * 3
