"""``--status``: ``/live``, ``/ready`` and ``/metrics``, over HTTP."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from postage.cli.run.openmetrics import Sums, added, text_of
from postage.errors import ConfigurationError

if TYPE_CHECKING:
    from postage.cli.run.process import Process  # which needs POSIX, and a probe does not

logger = logging.getLogger('postage.run')

ANSWER_SECONDS = 2.0  # for which a worker may take to say how it is
SLOW_SECONDS = 5.0  # for which a client may take to say what it wants


class Reports:
    """What workers say of themselves, gathered for one question at a time.

    :param ask: has every worker asked, in the supervisor's thread, and returns at once; gets what is called there with
        the workers that were asked, and with what is wrong already
    """

    def __init__(self, ask: Callable[[Callable[[list[Process], list[str]], None]], None]) -> None:
        self._ask = ask
        self._turn = threading.Lock()  # of one question
        self._changed = threading.Condition()
        self._asked: list[Process] | None = None
        self._faults: list[str] = []
        self._reports: dict[Process, dict[str, Any]] = {}
        self._last: dict[Process, list[Any]] = {}  # the samples of each that runs
        self._gone: Sums = {}  # of those that have gone, as far as they only grow

    # In the supervisor's thread

    def heard(self, process: Process, message: dict[str, Any]) -> None:
        """A worker has answered."""
        with self._changed:
            self._reports[process] = message
            self._last[process] = message.get('samples', [])
            self._changed.notify_all()

    def ended(self, process: Process) -> None:
        """A worker has gone. What it had counted still counts."""
        with self._changed:
            growing = [sample for sample in self._last.pop(process, []) if not _comes_and_goes(sample[0])]
            added(self._gone, growing)
            self._reports.setdefault(process, {})
            self._changed.notify_all()

    def _begun(self, asked: list[Process], faults: list[str]) -> None:
        with self._changed:
            self._asked, self._faults = asked, faults
            self._changed.notify_all()

    # In the thread that serves the request

    def faults(self) -> list[str]:
        """What is wrong with the workers, in words. Blocks for two seconds at most."""
        with self._turn:
            asked, faults = self._gather()
            for process in asked:
                report = self._reports.get(process)
                if report is None:
                    faults.append(f'{process} does not answer')
                else:
                    faults += [f'{process}: {fault}' for fault in report.get('health', {}).get('faults', [])]
        return faults

    def sums(self) -> Sums:
        """What all workers have counted, those that are gone included. Blocks for two seconds at most."""
        with self._turn:
            self._gather()
            with self._changed:
                sums = dict(self._gone)
                for samples in self._last.values():
                    added(sums, samples)
        return sums

    def _gather(self) -> tuple[list[Process], list[str]]:
        with self._changed:
            self._asked, self._faults = None, []
            self._reports.clear()
        self._ask(self._begun)
        deadline = time.monotonic() + ANSWER_SECONDS
        with self._changed:
            self._changed.wait_for(self._is_complete, max(0.0, deadline - time.monotonic()))
            if self._asked is None:
                return [], ['the supervisor does not answer']
            return list(self._asked), list(self._faults)

    def _is_complete(self) -> bool:
        return self._asked is not None and all(process in self._reports for process in self._asked)


def _comes_and_goes(name: str) -> bool:
    return name in ('postage.messages.in_hand', 'postage.messages.unconfirmed')


def address_of(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    :raises ConfigurationError: it is none
    """
    host, _, port = text.rpartition(':')
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f'--status {text!r:.80} is no HOST:PORT, such as 127.0.0.1:9100')
    return host.strip('[]'), int(port)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        if ':' in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the name service besides, which may take long

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # such as of a client that has gone
            logger.exception('a question about the status could not be answered')


class StatusServer:
    """Answers ``/live``, ``/ready`` and ``/metrics``, in threads of its own.

    :param where: ``HOST:PORT``; with port 0 any that is free
    :param reports: what it tells
    :raises ConfigurationError: it cannot listen there
    """

    def __init__(self, where: str, reports: Reports) -> None:
        handler = type('Handler', (_Handler,), {'reports': reports})
        try:
            self._server = _Server(address_of(where), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise ConfigurationError(f'cannot listen on {where}: {reason}') from error
        host, port = (str(part) for part in self._server.server_address[:2])
        self.url = f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name='postage-status', daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listen no more. Blocks until that is so."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    reports: Reports
    timeout = SLOW_SECONDS
    server_version = 'postage'
    sys_version = ''

    def do_GET(self) -> None:
        path = self.path.partition('?')[0]
        if path == '/live':
            self._answer(200, {'live': True})
        elif path == '/ready':
            faults = self.reports.faults()
            self._answer(503 if faults else 200, {'ready': not faults, 'faults': faults})
        elif path == '/metrics':
            try:
                self._send(200, *text_of(self.reports.sums()))
            except ConfigurationError as error:
                self._answer(501, {'error': str(error)})
        else:
            self._answer(404, {'error': 'there are /live, /ready and /metrics'})

    do_HEAD = do_GET  # noqa: N815 - the name is the base class's

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body).encode() + b'\n', 'application/json')

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header('Content-Type', content_type)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A probe every few seconds is no news."""
