"""Messages that arrive by HTTP, under any WSGI server."""

from __future__ import annotations

import atexit
import logging
import socketserver
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from postage.microthreads.alarm import Alarm
from postage.missive.adapters.running import RunnableAdapter
from postage.missive.contexts import ProcessingContext
from postage.missive.errors import MissingExtra
from postage.missive.messages import M
from postage.missive.processor import Processor

try:
    import flask
except ImportError:
    raise MissingExtra('WSGIAdapter', 'Flask', 'wsgi') from None

logger = logging.getLogger('postage')

REQUEST_TIMEOUT = 30.0  # seconds that the server of run() waits for the rest of a request


class WSGIAdapter(RunnableAdapter[M]):
    """Has the body of each ``POST /`` handled as a message, in the thread of its request.

    The response is 200 ``{"result": "ack"}`` or 500 ``{"result": "nack"}``; where handling fails, and there is no
    dead letter queue, the latter, with the exception in the log. A message that is answered has its answer as the
    response's body instead. ``message.headers`` has the request's headers, whose ``X-Message-Id`` becomes the id.

    Under a WSGI server of one's own the startup hooks run at the first request of each server process, so after any
    fork, and the shutdown hooks at the end of that process, or at :meth:`close`.

    :param message_cls: makes a message out of a request's body
    :param processor: what handles the messages
    :ivar app: the Flask application
    :ivar server_address: host and port at which :meth:`run` listens; ``None`` before and after
    """

    answers_in_place = True

    def __init__(self, message_cls: Callable[[bytes], M], processor: Processor[M]) -> None:
        super().__init__(message_cls, processor)
        self.app = flask.Flask('postage.missive')
        self.app.add_url_rule('/', 'handle', self._handle, methods=['POST'])
        self.server_address: tuple[str, int] | None = None
        self._answers: dict[int, _Answer] = {}
        self._alarm = Alarm()
        self._lock = threading.Lock()
        self._life = ExitStack()
        self._ctx: ProcessingContext[M] | None = None

    # Under any server

    def _started(self) -> ProcessingContext[M]:
        """The processing context of this process, which the first request begins."""
        with self._lock:
            if self._ctx is None:
                self._ctx = self._life.enter_context(self.processor.context(self.message_cls, self))
                atexit.register(self.close)
            return self._ctx

    def close(self) -> None:
        """End the processing that the first request began: the shutdown hooks are called."""
        with self._lock:
            self._ctx = None
            atexit.unregister(self.close)
            self._life.close()

    def _handle(self) -> flask.Response:
        """The view: one request, one message."""
        ctx, request = self._started(), flask.request
        message_id = request.headers.get('X-Message-Id', '').encode('utf-8')
        message = ctx.new_message(request.get_data(), message_id, dict(request.headers), delivery=request)
        answer = self._answers[id(message)] = _Answer()
        try:
            ctx.handle(message)
        except Exception:
            # The server and its other requests go on; the sender is told that it failed.
            logger.exception('%r could not be handled', message)
        finally:
            del self._answers[id(message)]
        return answer.response()

    def ack(self, message: M) -> None:
        """Have the request answered with 200."""
        self._answers[id(message)].result = 'ack'

    def nack(self, message: M) -> None:
        """Have the request answered with 500, so that its sender may try again."""
        self._answers[id(message)].result = 'nack'

    def reply(self, message: M, data: bytes, content_type: str) -> None:
        """Have the request answered with these bytes."""
        answer = self._answers.get(id(message))
        if answer is None:
            logger.warning('an answer to %r comes too late: its request has been answered', message)
        else:
            answer.data, answer.content_type = data, content_type

    # With a server of its own

    def run(self, host: str = '127.0.0.1', port: int = 8000) -> None:
        """Serve until SIGTERM or SIGINT (Ctrl-C), or :meth:`stop`; requests in hand are finished then. Blocks.

        A plain server from the standard library, a thread per request: for development, and for behind a proxy.

        :param port: 0 for any free one: see :attr:`server_address`
        """
        with self._ended_by_signals():
            self._serve(_Server((host, port), self.app))

    def _serve(self, server: _Server) -> None:
        thread = threading.Thread(target=server.serve_forever, name='postage-wsgi')
        try:
            self._started()
            self.server_address = (str(server.server_address[0]), int(server.server_address[1]))
            logger.info('serving on http://%s:%d/', *self.server_address)
            thread.start()
            if not self.shutdown_handler.should_exit():
                self.shutdown_handler.wait_for(lambda: self._alarm.wait(None))
            server.shutdown()
            thread.join()
        finally:
            self.server_address = None
            server.server_close()
            self.close()

    def _run(self, ctx: ProcessingContext[M]) -> None:
        raise NotImplementedError  # run() does not call it, for the first request begins the context

    def _wake(self) -> None:
        self._alarm.ring()


class _Answer:
    """The answer to one request: until a handler says otherwise, that it was not handled."""

    def __init__(self) -> None:
        self.result = 'nack'
        self.data: bytes | None = None
        self.content_type = ''

    def response(self) -> flask.Response:
        """The HTTP response."""
        status = 200 if self.result == 'ack' else 500
        if self.data is not None:
            return flask.Response(self.data, status, content_type=self.content_type)
        response = flask.jsonify(result=self.result)
        response.status_code = status
        return response


class _RequestHandler(WSGIRequestHandler):
    """Logs through ``logging``, and gives up on a client that stops in the middle of its request."""

    timeout = REQUEST_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug('%s: %s', self.address_string(), format % args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread per request, all of which are waited for at the end."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], app: Any) -> None:
        super().__init__(address, _RequestHandler)
        self.set_app(app)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service for the name of this machine and may wait for the answer.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()
