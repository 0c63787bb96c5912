"""pika's way to sockets, with the one thing that it does not expect: a peer that is gone as soon as it is reached."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter


class IOServices(SelectorIOServicesAdapter):
    """Reports to pika every way in which an attempt to connect can end.

    A broker that is being started or stopped, and a proxy without one, take a connection and reset it at once. Where
    the reset comes before pika has asked for the peer's name, pika raises from its own callback and nobody is told:
    the attempt would last until its time-out, 15 seconds by default.

    :ivar sock: what the connection was made over, the last one that was tried
    """

    sock: socket.socket | None = None

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: Any,
        on_done: Callable[[Any], None],
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> Any:
        """Return a handle with ``cancel()``; `on_done` gets the transport and the protocol, or what went wrong."""
        self.sock = sock
        try:
            return super().create_streaming_connection(protocol_factory, sock, on_done, ssl_context, server_hostname)
        except ValueError as error:
            failure = ConnectionResetError(f'the connection was reset as soon as it was made: {error}')
            return self.call_later(0, lambda: on_done(failure))
