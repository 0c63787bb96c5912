"""Tables and content headers are looked into and changed without decoding what they hold."""

from __future__ import annotations

import struct

import pika
import pytest
from pika import data, frame

from postage.broker import tables
from postage.broker.messages import ContentHeader
from postage.broker.replies import Refusal


def encoded(table: dict[str, object]) -> bytes:
    pieces: list[bytes] = []
    data.encode_table(pieces, table)
    return b''.join(pieces)


def nested(depth: int) -> bytes:
    table = b'\x00\x00\x00\x00'
    for _ in range(depth):
        entry = b'\x01dF' + table
        table = struct.pack('>I', len(entry)) + entry
    return table


def header_of(properties: pika.BasicProperties) -> ContentHeader:
    return ContentHeader(frame.Header(1, 0, properties).marshal()[7:-1])


def decoded(header: ContentHeader) -> pika.BasicProperties:
    properties = pika.BasicProperties()
    properties.decode(header.payload, 12)
    return properties


# Tables


def test_entries_are_changed_added_and_removed() -> None:
    table = tables.merge(encoded({'a': 1, 'b': 'x', 'c': None}), {'b': 2, 'c': None, 'd': [1]})
    assert data.decode_table(table, 0)[0] == {'a': 1, 'b': 2, 'd': [1]}


def test_values_that_pika_cannot_hold_survive_a_change() -> None:
    double = b'\x01fd' + struct.pack('>d', 1.5)
    date = b'\x01tT' + struct.pack('>Q', 2**63)
    deep = b'\x01nF' + nested(500)
    entries = double + date + deep
    table = tables.merge(struct.pack('>I', len(entries)) + entries, {'new': True})
    assert double in table
    assert date in table
    assert deep in table


def test_a_deep_table_is_checked_without_recursion() -> None:
    tables.check_table(nested(20_000))


@pytest.mark.parametrize(
    'table',
    [
        b'',
        b'\x00\x00\x00',
        b'\x00\x00\x00\x05',
        b'\x00\x00\x00\x04\x01a?x',
        b'\x00\x00\x00\x03\x01aI',
        b'\x00\x00\x00\x07\x01aS\xff\xff\xff\xff',
        b'\x00\x00\x00\x08\x01aF\x00\x00\x00\x09\x00',
        b'\x00\x00\x00\x01\xff',
    ],
)
def test_a_malformed_table_is_refused(table: bytes) -> None:
    with pytest.raises(Refusal, match='SYNTAX_ERROR'):
        tables.check_table(table)


def test_a_value_that_pika_cannot_decode_stays_bytes() -> None:
    deep = b'\x01nF' + nested(5000)
    assert tables.decode_shallow(struct.pack('>I', len(deep)) + deep) == {'n': deep[2:]}


# Content headers


def test_properties_are_read_from_the_raw_header() -> None:
    header = header_of(pika.BasicProperties(content_type='t', priority=7, expiration='5', headers={'k': 'v'}))
    assert (header.text('content_type'), header.text('expiration'), header.text('reply_to')) == ('t', '5', None)
    assert header.priority == 7
    assert header.header(b'k') == 'v'
    assert header.header(b'other') is None


def test_properties_are_replaced_and_the_others_kept() -> None:
    properties = pika.BasicProperties(
        content_type='t', headers={'k': 'v'}, expiration='5', message_id='m', timestamp=1, delivery_mode=2
    )
    changed = header_of(properties).replace(expiration=None, reply_to=b'\x02me').with_headers(**{'x-new': 1}, k=None)
    assert decoded(changed) == pika.BasicProperties(
        content_type='t', headers={'x-new': 1}, reply_to='me', message_id='m', timestamp=1, delivery_mode=2
    )


@pytest.mark.parametrize(
    'rest',
    [
        b'',
        struct.pack('>QH', 0, 0x8000),
        struct.pack('>QH', 0, 0x8000) + b'\x10abc',
        struct.pack('>QH', 0, 0) + b'more',
        struct.pack('>QH', 0, 1),
        struct.pack('>QH', 0, 0x2000) + b'\x00\x00\x00\x04\x01a?x',
        struct.pack('>QH', 0, 0x2000) + b'\xff\xff\xff\xff',
        struct.pack('>QH', 0, 0x0040) + b'\x00',
    ],
)
def test_a_malformed_header_is_refused(rest: bytes) -> None:
    with pytest.raises(Refusal, match='SYNTAX_ERROR'):
        ContentHeader(struct.pack('>HH', 60, 0) + rest)
