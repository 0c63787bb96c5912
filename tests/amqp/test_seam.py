"""What Postage relies on in pika, by name: private parts, and public ones that it overrides or calls by keyword.

Run with every release of pika that is supported (``tox -e pika-oldest,pika-newest,pika-prerelease``). Where one of
these fails, pika has changed something that ``postage/amqp`` has to know about.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pika
import pika.adapters.select_connection
import pika.frame
import pytest
from pika.adapters import base_connection
from pika.adapters.utils import io_services_utils
from pika.adapters.utils.nbio_interface import AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from postage.amqp.channel import WITHOUT_ANSWER
from postage.amqp.control import WITH_ANSWER
from postage.amqp.link import SEAM, Link, Services
from postage.broker.server import BrokerServer
from support.messaging import TIMEOUT, EchoProducer, eventually

CONNECTION = {
    '_proto_connection_made': ['transport'],
    '_proto_connection_lost': ['error'],
    '_proto_data_received': ['data'],
    '_output_marshaled_frames': ['marshaled_frames'],
    '_on_data_available': ['data_in'],
    '_terminate_stream': ['error'],
    'channel': ['channel_number', 'on_open_callback'],
    'close': ['reply_code', 'reply_text'],
    'add_on_connection_blocked_callback': ['callback'],
    'add_on_connection_unblocked_callback': ['callback'],
}

LOOP = {
    'add_callback_threadsafe': ['callback'],
    'call_later': ['delay', 'callback'],
    'remove_timeout': ['timeout_handle'],
    'start': [],
    'stop': [],
    'close': [],
}

TRANSPORT = {
    'write': ['data'],
    'get_write_buffer_size': [],
}

SERVICES = {
    'set_reader': ['fd', 'on_readable'],
    'remove_reader': ['fd'],
    'create_streaming_connection': ['protocol_factory', 'sock', 'on_done', 'ssl_context', 'server_hostname'],
}

CHANNEL = {
    'close': ['reply_code', 'reply_text'],
    'add_on_close_callback': ['callback'],
    'add_on_cancel_callback': ['callback'],
    'add_callback': ['callback', 'replies', 'one_shot'],
    'basic_publish': ['exchange', 'routing_key', 'body', 'properties', 'mandatory'],
    'basic_ack': ['delivery_tag', 'multiple'],
    'basic_nack': ['delivery_tag', 'multiple', 'requeue'],
    'basic_reject': ['delivery_tag', 'requeue'],
    'confirm_delivery': ['ack_nack_callback', 'callback'],
    'basic_consume': [
        *('queue', 'on_message_callback', 'auto_ack', 'exclusive', 'consumer_tag', 'arguments', 'callback'),
    ],
    'basic_cancel': ['consumer_tag', 'callback'],
    'basic_qos': ['prefetch_size', 'prefetch_count', 'global_qos', 'callback'],
    'exchange_declare': [
        *('exchange', 'exchange_type', 'passive', 'durable', 'auto_delete', 'internal', 'arguments', 'callback'),
    ],
    'queue_declare': ['queue', 'passive', 'durable', 'exclusive', 'auto_delete', 'arguments', 'callback'],
    'queue_bind': ['queue', 'exchange', 'routing_key', 'arguments', 'callback'],
    'queue_unbind': ['queue', 'exchange', 'routing_key', 'arguments', 'callback'],
}


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != 'self']


@pytest.mark.parametrize(
    ('owner', 'name', 'expected'),
    [
        pytest.param(owner, name, expected, id=f'{owner.__name__}.{name}')
        for owner, methods in [
            (pika.SelectConnection, CONNECTION),
            (pika.adapters.select_connection.IOLoop, LOOP),
            (SelectorIOServicesAdapter, SERVICES),
            (AbstractStreamTransport, TRANSPORT),
            (pika.channel.Channel, CHANNEL),
        ]
        for name, expected in methods.items()
    ],
)
def test_a_method_has_the_parameters_that_are_passed_to_it(owner: type, name: str, expected: list[str]) -> None:
    assert parameters(getattr(owner, name)) == expected


def test_a_connection_takes_a_loop_and_callbacks() -> None:
    used = ['on_open_callback', 'on_open_error_callback', 'on_close_callback', 'custom_ioloop']
    assert parameters(pika.SelectConnection.__init__)[: len(used) + 1] == ['parameters', *used]


@pytest.mark.parametrize('method', sorted(WITH_ANSWER - {'flow'}))
def test_a_method_with_an_answer_takes_a_callback(method: str) -> None:
    assert 'callback' in parameters(getattr(pika.channel.Channel, method))


@pytest.mark.parametrize('method', sorted(WITHOUT_ANSWER))
def test_a_method_without_an_answer_takes_none(method: str) -> None:
    assert 'callback' not in parameters(getattr(pika.channel.Channel, method))


def test_an_open_connection_has_what_a_link_reads_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with BrokerServer() as server:
        monkeypatch.setenv('POSTAGE_URL', server.url)
        with EchoProducer() as producer:
            link: Any = producer.conn_broker.link
            assert isinstance(link, pika.SelectConnection)
            assert link.is_open
            assert not link.is_closing
            assert not link.is_closed
            assert link.params.frame_max >= 4096
            assert link.params.heartbeat >= 0
            assert isinstance(link.ioloop, pika.adapters.select_connection.IOLoop)
            assert link._transport._sock.fileno() >= 0
            assert link._transport.get_write_buffer_size() == 0
            assert callable(link._transport.write)
            counted = ('bytes_sent', 'bytes_received', 'frames_sent', 'frames_received')
            before = [getattr(link, name) for name in counted]
            assert min(before) > 0
            producer.message_echo().wait(TIMEOUT)
            eventually(lambda: all(getattr(link, name) > old for name, old in zip(counted, before, strict=True)))


def test_every_name_of_the_seam_is_pinned_here() -> None:
    assert set(SEAM) <= set(CONNECTION)


def test_the_loop_calls_back_in_order_and_leaves_what_comes_meanwhile_for_the_next_round() -> None:
    """A link counts on the order, and does not count on more: see Link._pass_on."""
    loop = pika.adapters.select_connection.IOLoop()
    order: list[str] = []
    loop.add_callback_threadsafe(lambda: (order.append('a'), loop.add_callback_threadsafe(lambda: order.append('c'))))
    loop.add_callback_threadsafe(lambda: order.append('b'))
    loop.process_timeouts()
    assert order == ['a', 'b']
    loop.process_timeouts()
    assert order == ['a', 'b', 'c']
    loop.close()


def test_a_loop_that_was_closed_may_still_be_asked_to_call_back() -> None:
    loop = pika.adapters.select_connection.IOLoop()
    loop.close()
    loop.add_callback_threadsafe(lambda: None)


def test_pika_s_transport_hands_data_to_the_method_that_is_overridden() -> None:
    received: list[bytes] = []
    link: Any = Link(
        pika.ConnectionParameters(),
        internal_connection_workflow=False,
        services=Services(pika.adapters.select_connection.IOLoop()),
        is_direct=False,
    )
    link._proto_data_received = received.append
    base_connection._StreamingProtocolShim(link).data_received(b'bytes')
    link.ioloop.close()
    assert received == [b'bytes']
    assert (link.bytes_received, link.frames_received) == (0, 0)
    assert link.params.frame_max == pika.ConnectionParameters().frame_max


@pytest.mark.parametrize('transport', ['_AsyncPlaintextTransport', '_AsyncSSLTransport'])
def test_pika_s_transports_have_what_a_link_asks_of_them(transport: str) -> None:
    for name in TRANSPORT:
        assert callable(getattr(getattr(io_services_utils, transport), name))


def test_a_channel_tells_its_number_and_its_consumers() -> None:
    connection = object.__new__(pika.SelectConnection)
    connection.callbacks = pika.callback.CallbackManager()  # type: ignore[attr-defined]
    channel = pika.channel.Channel(connection, 7, lambda _: None)
    assert channel.channel_number == 7
    assert list(channel.consumer_tags) == []
    assert not channel.is_open
