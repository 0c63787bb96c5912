"""A client of a broker without sockets: it hands the bytes over itself."""

from __future__ import annotations

from typing import Any

from pika import frame, spec

from postage.broker.connection import Connection
from postage.broker.node import Node
from support.channels import PROTOCOL_HEADER, method_frame


class Client:
    """The client's end of a connection to a node."""

    def __init__(self, node: Node, peer: str = 'test:1', password: str = 'guest', **capabilities: bool) -> None:
        self.connection: Connection = node.connect(peer)
        self._password = password
        self._received = b''
        self._capabilities = capabilities

    def send(self, data: bytes) -> None:
        self.connection.receive_bytes(data)

    def read(self) -> list[Any]:
        """Return the methods, headers and bodies that the broker has sent."""
        data = self.connection.data_to_send()
        self.connection.data_sent(len(data))
        self._received += data
        found = []
        while self._received:
            size, each = frame.decode_frame(self._received)
            assert each is not None
            self._received = self._received[size:]
            found.append(getattr(each, 'method', each))
        return found

    def open(self, heartbeat: int = 0, channels: int = 1) -> Client:
        self.send(PROTOCOL_HEADER)
        self.send(self.handshake(heartbeat))
        for number in range(1, channels + 1):
            self.send(method_frame(number, spec.Channel.Open()))
        self.read()
        return self

    def handshake(self, heartbeat: int = 0) -> bytes:
        properties = {'capabilities': self._capabilities}
        return b''.join(
            method_frame(0, each)
            for each in (
                spec.Connection.StartOk(properties, 'PLAIN', f'\0guest\0{self._password}', 'en_US'),
                spec.Connection.TuneOk(2047, 131_072, heartbeat),
                spec.Connection.Open('/'),
            )
        )

    def ask(self, each: Any, channel: int = 1) -> Any:
        """Send a method and return the first answer."""
        self.send(method_frame(channel, each))
        return self.read()[0]
