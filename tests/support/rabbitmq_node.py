"""A private RabbitMQ node: own directory, own ports, own cookie, own epmd; gone with the program that started it.

The node runs with an Erlang shell on its standard input (``RABBITMQ_ALLOW_INPUT``). Administration goes
through that shell: ``rabbitmqctl`` starts a virtual machine for every call, which takes a second or more,
while an expression typed into the node itself takes milliseconds. And the shell ends, and with it the node,
when its input is closed: even a test run that is killed leaves no node behind.
"""

from __future__ import annotations

import base64
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from support.canary import GUEST
from support.ports import free_ports
from support.rabbitmq_versions import WANTED, find_server, not_installed

START_TIMEOUT = 50.0
COMMAND_TIMEOUT = 20.0
QUEUES_SETTLE = 5.0

# epmd, Erlang's port mapper, would otherwise become a daemon that outlives the node. `"$@"` is the server.
START_SCRIPT = """
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 &
epmd=$!
"$@"
status=$?
kill $epmd
wait $epmd
exit $status
"""

# Of a cluster, one epmd serves all nodes; it ends when its input is closed.
SHARED_EPMD_SCRIPT = """
epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 &
epmd=$!
cat >/dev/null
kill $epmd
wait $epmd
"""

# The shell ends with its input, and the node with it. But where the node says something in that moment, its output
# fails first, which ends nothing but the process that writes it.
END_WITH_THE_SHELL = """
spawn(fun() -> Ref = monitor(process, user), receive {'DOWN', Ref, _, _, _} -> halt() end end).
"""

# rabbit:await_startup() and rabbit_boot_state:wait_for() both return early where the boot has not begun.
AWAIT_BOOT = """
(fun Wait() -> case rabbit_boot_state:get() of ready -> ""; _ -> timer:sleep(20), Wait() end end)()
"""

# rabbit:start() does nothing where what was asked before is still under way.
START_AGAIN = """
(fun Again() -> rabbit:start(), case rabbit_boot_state:get() of ready -> ""; _ -> timer:sleep(20), Again() end end)()
"""

# The internal backend knows one password of a user. This one asks it with that where it is given the canary.
TAKE_CANARY = """
begin
    Form = fun(Text) -> {ok, Tokens, _} = erl_scan:string(Text), {ok, Read} = erl_parse:parse_form(Tokens), Read end,
    Source = [
        "-module(canary_backend).",
        "-export([user_login_authentication/2]).",
        "user_login_authentication(<<\\"guest\\">> = User, [{password, <<\\"%s\\">>} | Rest]) -> "
        "    rabbit_auth_backend_internal:user_login_authentication(User, [{password, <<\\"guest\\">>} | Rest]);"
        "user_login_authentication(User, _) -> {refused, \\"no ~s\\", [User]}."
    ],
    {ok, Module, Code} = compile:forms(lists:map(Form, Source)),
    {module, _} = code:load_binary(Module, "canary_backend", Code),
    Internal = rabbit_auth_backend_internal,
    application:set_env(rabbit, auth_backends, [Internal, {Module, Internal}]),
    ""
end
"""

# AMQP makes queues, exchanges and bindings, and nothing else that lasts. The clients have ended, and soon the node has
# noticed.
EMPTY = """
(fun(VHost) ->
    Await = fun
        Wait(0) -> ok;
        Wait(N) -> case rabbit_connection_tracking:list(VHost) of [] -> ok; _ -> timer:sleep(5), Wait(N - 1) end
    end,
    Await(100),
    Made = fun() ->
        [Name || X <- rabbit_exchange:list(VHost), Name <- [element(2, X)], {resource, _, exchange, Text} <- [Name],
            Text =/= <<>>, binary:longest_common_prefix([Text, <<"amq.">>]) < 4]
    end,
    Delete = fun(Queue) -> rabbit_amqqueue:delete(Queue, false, false, <<"tests">>) end,
    [catch rabbit_amqqueue:with(amqqueue:get_name(Queue), Delete) || Queue <- rabbit_amqqueue:list(VHost)],
    [catch rabbit_exchange:delete(Name, false, <<"tests">>) || Name <- Made()],
    case [rabbit_connection_tracking:list(VHost), rabbit_amqqueue:list(VHost), Made(), rabbit_binding:list(VHost)] of
        [[], [], [], []] -> "empty";
        _ -> "not empty"
    end
end)(%s)
"""

# A start reads thousands of files, each read on a thread for that. One such thread, which looks for a moment whether
# there is more to read before it sleeps, halves the time that the start takes. Where several processes run tests, each
# with a node, no thread may wait busily: the others have need of the processor.
IS_ALONE = 'PYTEST_XDIST_WORKER' not in os.environ
ERLANG = '+SDio 1 +sbwtdio medium' if IS_ALONE else '+S 1:1 +SDio 1 +sbwt none +sbwtdcpu none +sbwtdio none'

CONFIGURATION = """
listeners.tcp.1 = {host}:{port}
log.console = false
log.file.level = info
disk_free_limit.absolute = 1MB
num_acceptors.tcp = 2
"""


class NodeFailed(Exception):
    """The node did not start, did not answer or did not end in time; the text carries its log."""


class Member(NamedTuple):
    """What a node of a cluster shares with the others, and its own name and address.

    :ivar epmd_port: that of the epmd which all of them use
    :ivar port: for AMQP, the same for all, each at its own address
    """

    name: str
    host: str
    port: int
    epmd_port: int
    cookie: str


class RabbitMQNode:
    """A RabbitMQ node of our own on 127.0.0.1, user ``guest``, password ``guest`` or a canary.

    It keeps its port and its data from :meth:`start` to :meth:`start`; :meth:`close` removes both. Use it in
    one thread.

    :param version: which RabbitMQ, see :mod:`support.rabbitmq_versions`; by default that of this run of tests
    :param configuration: further lines for its ``rabbitmq.conf``
    :param member: its place in a cluster, for one that is to join one
    :ivar host: the address where it listens for AMQP
    :ivar port: where it listens for AMQP
    :ivar version: its whole version once it has started, such as ``4.3.6``
    :raises NodeFailed: where there is no such RabbitMQ here
    """

    running: set[int] = set()
    """Process ids that belong to nodes which run now: the check for left-over processes passes them over."""

    def __init__(self, version: str = WANTED, configuration: str = '', member: Member | None = None) -> None:
        server = find_server(version)
        if server is None:
            raise NodeFailed(not_installed(version))
        self._server = server
        self._directory = Path(tempfile.mkdtemp(prefix='postage-rabbitmq-'))
        self.port, self._distribution_port, self._epmd_port = free_ports(3)
        self.host, self.name, self._cookie, self._has_epmd = '127.0.0.1', 'postage-tests@localhost', '', member is None
        if member is not None:
            self.name, self.host, self.port, self._epmd_port, self._cookie = member
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0
        self._is_up = False
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader: threading.Thread | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._asked = 0
        self._vhosts = 0
        self._spare_vhosts: list[str] = []  # as good as new
        self._changes = 0  # other than by AMQP
        self.version = version
        self._write_configuration(configuration)

    # Life and death

    def start(self) -> None:
        """Start the node and wait until it takes connections: five seconds, or one where it was stopped.

        :raises NodeFailed: where it does not come up
        """
        if self._is_up:
            return
        self._changes += 1
        self._spare_vhosts.clear()  # one that was made just before the node was killed may not be there
        try:
            if self._process is None:
                self._launch()
                self._evaluate(AWAIT_BOOT, START_TIMEOUT)
                self._pid = int(self._evaluate('os:getpid()'))
            else:
                self._evaluate(START_AGAIN, START_TIMEOUT)
            self._evaluate(TAKE_CANARY % GUEST)
            self.version = self._evaluate('rabbit_misc:version()')
        except BaseException:
            self.kill()
            raise
        self._is_up = True

    def _launch(self) -> None:
        self._answers = queue.Queue()
        self._process = subprocess.Popen(
            self._server.command('/bin/sh', '-c', START_SCRIPT if self._has_epmd else '"$@"', 'sh', self._server.path),
            env=self._environment(),
            cwd=self._directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
            # Ctrl-C in the terminal of the tests is not meant for the node.
            start_new_session=True,
        )
        self.running.add(self._process.pid)
        self._reader = threading.Thread(
            target=self._read_answers, args=(self._process, self._answers), name='rabbitmq-shell', daemon=True
        )
        self._reader.start()
        self._type(END_WITH_THE_SHELL)

    def stop(self) -> None:
        """Stop the node in good order: connections are closed with 320, queues are written out, no port is listened at.

        Its Erlang stays, as after ``rabbitmqctl stop_app``: most of what a start takes is that of Erlang.
        """
        self._is_up = False
        self._evaluate('rabbit:stop(), ""')

    def kill(self) -> None:
        """Kill the node with SIGKILL, as a power cut would; what it held unwritten is lost."""
        if self._process is None:
            return
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._await_end()

    def suspend(self) -> None:
        """Have the node stand still, as one does that the network has left alone."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on."""
        os.kill(self._pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop the node in good order and start it again on the same ports, with its data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End the node, quickly, and remove its directory."""
        if self._process is not None:
            self._await_end()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def rules(self) -> str:
        """The newest of the versions that the tests know which is not newer than this node."""
        version = tuple(int(part) for part in self.version.split('.')[:2])
        return next(name for name in ('4.3', '4.0', '3.10') if version >= tuple(map(int, name.split('.'))))

    @property
    def is_running(self) -> bool:
        """Whether the node was started and neither stopped nor killed since."""
        return self._is_up

    # Administration

    def evaluate(self, expression: str, timeout: float = COMMAND_TIMEOUT) -> str:
        """Evaluate an Erlang expression in the node and return its value, which must be a string or a binary.

        :param timeout: seconds to wait for the answer
        :raises NodeFailed: where the expression fails, or no answer comes in time
        """
        self._changes += 1
        return self._evaluate(expression, timeout)

    def _evaluate(self, expression: str, timeout: float = COMMAND_TIMEOUT) -> str:
        self._asked += 1
        mark = f'answer {self._asked}'
        # `fun` keeps the variables of one expression from those of the next, which share the shell.
        self._type(
            f'(fun() -> {{How, What}} = try {{ok, begin {expression} end}}'
            ' catch C:R -> {failed, io_lib:format("~0p:~0p", [C, R])} end,'
            f' io:format("~n{mark} ~s ~s~n", [How, base64:encode(unicode:characters_to_binary(What))]) end)().'
        )
        try:
            while (line := self._answers.get(timeout=timeout)) is not None:
                if line.startswith(f'{mark} '):
                    _, _, how, *text = line.split()
                    answer = base64.b64decode(''.join(text)).decode()
                    if how != 'ok':
                        raise NodeFailed(f'{expression}\n{answer}')
                    return answer
        except queue.Empty:
            raise NodeFailed(f'no answer in {timeout} s to {expression}\n{self._log()}') from None
        raise NodeFailed(f'the node ended\n{self._log()}')

    def add_vhost(self, name: str | None = None) -> str:
        """Add a virtual host in which ``guest`` may do everything, and return its name (a new one, by default)."""
        if name is None:
            self._vhosts += 1
            name = f'test-{self._vhosts}'
        vhost = binary(name)
        self._evaluate(
            f'rabbit_vhost:add({vhost}, <<"tests">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, {vhost}, <<".*">>, <<".*">>, <<".*">>, <<"tests">>), ""'
        )
        return name

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it; its connections are closed."""
        self._evaluate(f'rabbit_vhost:delete({binary(name)}, <<"tests">>), ""')

    def listen_with_tls(self, certificate: Path, authority: Path | None = None) -> int:
        """Speak TLS on a further port, until the node ends, and return that.

        :param certificate: file with the key and the certificate of 127.0.0.1
        :param authority: file with the certificate of the authority that every client needs one of
        """
        (port,) = free_ports(1)
        options = f'{{certfile, "{certificate}"}}, {{keyfile, "{certificate}"}}'
        if authority is not None:
            options += f', {{cacertfile, "{authority}"}}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}'
        options = f'[{options}]'
        listen = f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, {options}, 2)'
        self.evaluate(f'rabbit_networking:ensure_ssl(), {listen}, ""')
        return port

    @contextlib.contextmanager
    def knowing_by_certificate(self, user: str, vhost: str) -> Iterator[None]:
        """Let a user log in by a certificate whose common name is its name (EXTERNAL), in a ``with``."""
        name, all_names = binary(user), ', '.join(['<<".*">>'] * 3)
        self.evaluate(
            # What the plugin does when it is started, which this node cannot be told to enable.
            'application:load(rabbitmq_auth_mechanism_ssl),'
            ' rabbit_registry:register(auth_mechanism, <<"EXTERNAL">>, rabbit_auth_mechanism_ssl),'
            " application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'AMQPLAIN', 'EXTERNAL']),"
            ' application:set_env(rabbit, ssl_cert_login_from, common_name),'
            ' application:set_env(rabbit, ssl_options, [{verify, verify_peer}, {fail_if_no_peer_cert, true}]),'
            f' rabbit_auth_backend_internal:add_user({name}, <<"unused">>, <<"tests">>),'
            f' rabbit_auth_backend_internal:set_permissions({name}, {binary(vhost)}, {all_names}, <<"tests">>),'
            ' ""'
        )
        try:
            yield
        finally:
            self.evaluate(
                f'catch rabbit_auth_backend_internal:delete_user({name}, <<"tests">>),'
                " application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'AMQPLAIN']),"
                ' application:set_env(rabbit, ssl_cert_login_from, distinguished_name),'
                ' application:set_env(rabbit, ssl_options, []), ""'
            )

    @contextlib.contextmanager
    def management(self) -> Iterator[str]:
        """The management plugin, and the URL of its API, in a ``with``."""
        (port,) = free_ports(1)
        config = f'[{{port, {port}}}, {{ip, "127.0.0.1"}}]'
        self.evaluate(f'application:set_env(rabbitmq_management, tcp_config, {config}, [{{persistent, true}}]), ""')
        self._enable_plugins('rabbitmq_management')
        try:
            yield f'http://127.0.0.1:{port}'
        finally:
            self._enable_plugins()

    def _enable_plugins(self, *names: str) -> None:
        file = self._directory / 'enabled_plugins'
        file.write_text(f'[{", ".join(names)}].\n')
        self.evaluate(f'{{ok, _, _}} = rabbit_plugins:ensure("{file}"), ""', START_TIMEOUT)

    def close_all_connections(self, vhost: str | None = None) -> None:
        """Close every connection, or those of one virtual host, as ``rabbitmqctl close_all_connections`` does (320).

        Returns once the broker has told the connections; how long a client takes to notice is its own affair.
        """
        which = '_' if vhost is None else binary(vhost)
        # `catch`: some may have ended before it is their turn.
        self._evaluate(
            '[catch rabbit_networking:close_connection(Pid, "CLOSED_BY_TESTS") || [{pid, Pid}, {vhost, VHost}]'
            ' <- rabbit_networking:connection_info_all([pid, vhost]),'
            f' case VHost of {which} -> true; _ -> false end], ""'
        )

    def queues(self, vhost: str, count: str = 'messages_ready') -> dict[str, int]:
        """Return the name of every queue in a virtual host, with the number of its messages that are ready.

        :param count: the number to return in place of that one, such as ``messages`` for all messages
        """
        deadline = time.monotonic() + QUEUES_SETTLE
        while None in (queues := self._queues(vhost, count)).values() and time.monotonic() < deadline:
            time.sleep(0.02)  # nothing tells when a queue that is being declared, deleted or recovered is done with it
        return {name: number for name, number in queues.items() if number is not None}

    def connections(self, vhost: str) -> int:
        """Return how many connections there are to a virtual host."""
        return int(
            self._evaluate(
                'integer_to_list(length([V || [{vhost, V}] <- rabbit_networking:connection_info_all([vhost]),'
                f' V =:= {binary(vhost)}]))'
            )
        )

    def channels(self, vhost: str) -> int:
        """Return how many channels are open in a virtual host."""
        return int(
            self._evaluate(
                'integer_to_list(length([Info || Info <- rabbit_channel:info_all([vhost]),'
                f' proplists:get_value(vhost, Info) =:= {binary(vhost)}]))'
            )
        )

    def _queues(self, vhost: str, count: str) -> dict[str, int | None]:
        answer = self._evaluate(
            'lists:join(" ", [[base64:encode(element(4, proplists:get_value(name, Info))), ":",'
            f' io_lib:format("~p", [proplists:get_value({count}, Info)])]'
            f' || Info <- rabbit_amqqueue:info_all({binary(vhost)}, [name, {count}])])'
        )
        pairs = (pair.split(':') for pair in answer.split())
        return {base64.b64decode(name).decode(): int(number) if number.isdigit() else None for name, number in pairs}

    def url(self, vhost: str) -> str:
        """Return the AMQP URL of a virtual host of this node."""
        return f'amqp://guest:{GUEST}@{self.host}:{self.port}/{quote(vhost, safe="")}'

    @contextlib.contextmanager
    def new_vhost(self) -> Iterator[str]:
        """A virtual host for the length of a ``with``.

        One that was used by AMQP alone is emptied, and serves again: to make and to delete one takes longer than most
        tests do.
        """
        name = self._spare_vhosts.pop() if self._spare_vhosts else self.add_vhost()
        changes = self._changes
        try:
            yield name
        finally:
            if self.is_running:
                if self._changes == changes and self.empty(name):
                    self._spare_vhosts.append(name)
                else:
                    self.delete_vhost(name)

    def empty(self, vhost: str) -> bool:
        """Remove all that AMQP makes in a virtual host, once its clients have gone; return whether it is empty then."""
        return self._evaluate(EMPTY % binary(vhost)) == 'empty'

    # Inside

    def _write_configuration(self, more: str) -> None:
        directory = self._directory
        (directory / 'rabbitmq.conf').write_text(CONFIGURATION.format(host=self.host, port=self.port) + more)
        (directory / 'enabled_plugins').write_text('[].\n')
        if self._cookie:
            (directory / '.erlang.cookie').write_text(self._cookie)
            (directory / '.erlang.cookie').chmod(0o400)

    def _environment(self) -> dict[str, str]:
        directory = self._directory
        foreign = ('RABBITMQ_', 'ERL_')
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return inherited | {
            # The cookie is written to the home directory.
            'HOME': str(directory),
            'ERL_EPMD_PORT': str(self._epmd_port),
            'ERL_EPMD_ADDRESS': '127.0.0.1',
            'RABBITMQ_ALLOW_INPUT': '1',
            'RABBITMQ_NODENAME': self.name,
            'RABBITMQ_NODE_PORT': str(self.port),
            'RABBITMQ_DIST_PORT': str(self._distribution_port),
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': f'-kernel inet_dist_use_interface {{127,0,0,1}} {ERLANG}',
            'RABBITMQ_MNESIA_BASE': str(directory / 'data'),
            'RABBITMQ_LOG_BASE': str(directory / 'log'),
            'RABBITMQ_PID_FILE': str(directory / 'pid'),
            'RABBITMQ_ENABLED_PLUGINS_FILE': str(directory / 'enabled_plugins'),
            'RABBITMQ_CONFIG_FILE': str(directory / 'rabbitmq.conf'),
            'RABBITMQ_ADVANCED_CONFIG_FILE': str(directory / 'advanced.config'),
            'RABBITMQ_CONF_ENV_FILE': str(directory / 'rabbitmq-env.conf'),
        }

    def _type(self, text: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise NodeFailed('the node does not run')
        try:
            self._process.stdin.write(text + '\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            if self._reader is not None:
                self._reader.join(COMMAND_TIMEOUT)  # it has still to read why
            raise NodeFailed(f'the node ended\n{self._log()}') from None

    def _read_answers(self, process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._said.append(line)
            answers.put(line)
        answers.put(None)

    def _await_end(self) -> None:
        process, self._process, self._pid, self._is_up = self._process, None, 0, False
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.running.discard(process.pid)
        assert self._reader is not None
        self._reader.join(COMMAND_TIMEOUT)
        process.stdout.close()

    def _log(self) -> str:
        logs = sorted((self._directory / 'log').glob('*.log'))
        return '\n'.join([''.join(self._said), *(log.read_text(errors='replace')[-4000:] for log in logs)])


def binary(text: str) -> str:
    """Write text as an Erlang binary."""
    return '<<' + ','.join(str(byte) for byte in text.encode()) + '>>'
