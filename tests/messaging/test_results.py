"""A result gives its value, or raises what the responder raised."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from postage import messaging
from support.messaging import TIMEOUT, Echo, EchoProducer, Processor, responder_of_results, result

FINGERPRINT = messaging.Fingerprint('responder', 'test').as_dict()


@messaging.remote_exception
class NotThere(Exception):
    def __init__(self, shelf, row):
        super().__init__(shelf, row)
        self.shelf, self.row = shelf, row


@messaging.remote_exception(name='tests.Odd')
class Odd(Exception):
    """Its argument cannot be encoded."""


@messaging.remote_exception
class Reworded(Exception):
    def __init__(self, shelf, row):
        super().__init__(f'nothing on {shelf}, {row}')
        self.shelf, self.row = shelf, row


@messaging.remote_exception
class KeywordsAlone(Exception):
    def __init__(self, *, code):
        super().__init__(f'code {code}')
        self.code = code


@messaging.remote_exception
class WithDefault(Exception):
    def __init__(self, text, code=0):
        super().__init__(f'{text}!')
        self.code = code


@messaging.remote_exception
class Plain(Exception):
    """As most are."""


@messaging.remote_exception
@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


@messaging.remote_exception
class Immutable(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(name)


@messaging.remote_exception
@dataclasses.dataclass(slots=True)
class Slotted(Exception):
    code: int


@messaging.remote_exception
class NoFile(FileNotFoundError):
    pass


@messaging.remote_exception
class NoSuchPath(FileNotFoundError):
    def __init__(self, path):
        super().__init__(errno.ENOENT, 'there is none', path)


@messaging.remote_exception
class Dropped(messaging.FilterError):
    pass


@messaging.remote_exception
class Garbled(UnicodeDecodeError):
    pass


@messaging.remote_exception
class Elusive(Exception):
    def __new__(cls, *args):
        return 'no exception'


class Failing(Processor):
    @messaging.RpcHandler('command', 'fail')
    def rpc_fail(self, content, reply_func):
        raise self.error

    @messaging.RpcHandler('command', 'answer')
    def rpc_answer(self, content, reply_func):
        return self.answer

    @messaging.MessageHandler('command', 'note')
    def msg_note(self, content):
        self.seen.put(content)


@pytest.fixture
def failing(bench):
    processor = Failing(fingerprint=FINGERPRINT)
    bench.run(processor)
    return processor


def test_a_result_has_its_value(bench, failing):
    failing.answer = {'a': [1]}
    reply = bench.producer().rpc_answer()
    assert reply.value == {'a': [1]}
    assert reply.unwrap() == {'a': [1]}
    assert reply.failure is None


def test_a_future_has_its_value_too(bench, failing):
    failing.answer = 5
    assert bench.producer().rpc_future_answer().value(TIMEOUT) == 5


def test_a_result_says_who_answered_and_how_long_it_took(bench, failing):
    failing.answer = None
    failing.error = KeyError('x')
    for reply in (bench.producer().rpc_fail(), bench.producer().rpc_missing()):
        assert reply.responder == FINGERPRINT
        assert 0 <= reply.duration < TIMEOUT
        assert reply.body['_reserved']['fingerprint'] == FINGERPRINT


def test_a_message_of_the_handlers_own_keeps_its_fingerprint_and_says_who_answered(bench, failing):
    failing.answer = messaging.MessageResult(1)
    failing.answer.fingerprint(name='another')
    reply = bench.producer().rpc_answer()
    assert reply.body['fingerprint'] == {'name': 'another'}
    assert reply.responder == FINGERPRINT


def test_the_reply_of_an_old_program_has_a_value_and_no_duration(bench):
    responder_of_results(bench, [{**result(7), 'fingerprint': {'name': 'old'}}])
    reply = bench.producer().rpc_echo()
    assert (reply.value, reply.responder, reply.duration) == (7, {'name': 'old'}, None)


def test_an_exception_is_raised_as_a_remote_error_with_its_name_and_text(bench, failing):
    failing.error = KeyError('x')
    with pytest.raises(messaging.RemoteError, match="KeyError: 'x'") as raised:
        bench.producer().rpc_fail().unwrap()
    assert (raised.value.name, raised.value.text, raised.value.responder) == ('KeyError', "'x'", FINGERPRINT)
    with pytest.raises(messaging.RemoteError):
        bench.producer().rpc_future_fail().value(TIMEOUT)


def test_an_error_is_raised_as_a_remote_error_without_a_name(bench, failing):
    failing.answer = messaging.MessageResultError('no')
    with pytest.raises(messaging.RemoteError, match=r'^no$') as raised:
        bench.producer().rpc_answer().unwrap()
    assert raised.value.name is None


def test_an_exception_that_both_sides_registered_is_raised_as_itself(bench, failing):
    failing.error = NotThere('upper', 3)
    reply = bench.producer().rpc_fail()
    assert reply.body['content']['value'] == 'NotThere'
    with pytest.raises(NotThere) as raised:
        reply.unwrap()
    assert (raised.value.shelf, raised.value.row) == ('upper', 3)
    assert isinstance(raised.value.__cause__, messaging.RemoteError)


@pytest.mark.parametrize(
    'error',
    [
        *(Reworded('upper', 3), KeywordsAlone(code=7), WithDefault('lost', code=7), Plain('as it is'), Plain()),
        *(Frozen(3), Frozen(code=3), Immutable('a', 1), Slotted(3), Slotted(code=3), Dropped('not now')),
        *(NoFile(errno.ENOENT, 'gone', 'here'), NoFile('gone'), NoSuchPath('/there')),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_itself_whatever_its_constructor_takes_and_makes_of_it(bench, failing, error):
    failing.error = error
    with pytest.raises(type(error)) as raised:
        bench.producer().rpc_fail().unwrap()
    assert str(raised.value) == str(error)
    assert raised.value.args == error.args
    assert vars(raised.value) == vars(error)
    for name in ('code', 'errno', 'filename'):
        assert getattr(raised.value, name, None) == getattr(error, name, None)


def test_an_exception_of_what_does_not_travel_is_a_remote_error_with_its_text(bench, failing):
    failing.error = Garbled('utf-8', b'\xff', 0, 1, 'no such byte')
    with pytest.raises(messaging.RemoteError, match=r'Garbled: .* no such byte'):
        bench.producer().rpc_fail().unwrap()


def test_an_attribute_that_cannot_be_encoded_does_not_keep_the_exception_back(bench, failing):
    failing.error = Plain('all the same')
    failing.error.lock = object()
    with pytest.raises(Plain, match='all the same'):
        bench.producer().rpc_fail().unwrap()
    bench.log.expect('WARNING', 'Plain travels without its attributes')


def test_a_class_that_makes_something_else_is_a_remote_error(bench):
    told = result('Elusive', type='exception', message='told')
    exception = {'name': 'Elusive', 'args': ['x'], 'attributes': {}}
    responder_of_results(bench, [{**told, '_reserved': {'exception': exception}}])
    with pytest.raises(messaging.RemoteError, match='Elusive: told'):
        bench.producer().rpc_echo().unwrap()


def test_a_subclass_that_is_not_registered_is_a_remote_error(bench, failing):
    failing.error = type('Elsewhere', (NotThere,), {})('upper', 3)
    with pytest.raises(messaging.RemoteError, match='Elsewhere'):
        bench.producer().rpc_fail().unwrap()


def test_arguments_that_cannot_be_encoded_do_not_keep_the_answer_back(bench, failing):
    failing.error = Odd(object())
    with pytest.raises(messaging.RemoteError, match='Odd: <object object'):
        bench.producer().rpc_fail().unwrap()
    bench.log.expect('WARNING', 'Odd travels without its arguments')


@pytest.mark.parametrize(
    'exception',
    [
        {'name': 'NotThere', 'args': ['too few']},
        {'name': 'NotThere', 'args': 'text'},
        {'name': 'Nobody', 'args': []},
        {'name': ['NotThere'], 'args': []},
        {},
        'NotThere',
    ],
)
def test_what_cannot_be_made_here_is_a_remote_error(bench, exception):
    told = result('NotThere', type='exception', message='told')
    responder_of_results(bench, [{**told, '_reserved': {'exception': exception}}])
    with pytest.raises(messaging.RemoteError, match='NotThere: told'):
        bench.producer().rpc_echo().unwrap()


def test_a_call_that_no_responder_answered_raises_as_what_it_is(bench):
    producer = bench.producer()
    with pytest.raises(messaging.Unroutable):
        producer.rpc_echo().unwrap()
    bench.collect()
    with pytest.raises(messaging.TimeoutError):
        producer.rpc_echo(_timeout=0.05).unwrap()
    with pytest.raises(TimeoutError):
        producer.rpc_future_echo(_timeout=0.05).value(TIMEOUT)


def test_a_name_is_registered_once_and_for_exceptions_alone():
    with pytest.raises(messaging.ConfigurationError, match='classes of exceptions'):
        messaging.remote_exception(int)
    with pytest.raises(messaging.ConfigurationError, match=r"test_results\.NotThere is registered as 'NotThere'"):
        messaging.remote_exception(type('NotThere', (Exception,), {'__module__': 'elsewhere'}))
    assert messaging.remote_exception(NotThere) is NotThere


def test_any_attribute_of_a_result_may_be_set():
    message = messaging.MessageResult(1)
    message.value = message.text = message.duration = 'own'
    assert (message.value, message.text, message.duration) == ('own',) * 3
    assert message.body['content']['value'] == 1


# Told early


@pytest.mark.parametrize(
    ('call', 'fault'),
    [
        (lambda producer: producer.message_echo(1, _kye='x'), 'message_echo.. takes _key, .* not _kye'),
        (lambda producer: producer.message('x', _kye='x'), 'message.. takes _key, .* not _kye'),
        (lambda producer: producer.message_echo(1, _timeout=1), 'message_echo.. takes _key, .* not _timeout'),
        (lambda producer: producer.rpc_echo(_tiemout=1), 'rpc_echo.. takes .*_timeout, .* not _tiemout'),
        (lambda producer: producer.rpc_future_echo(_tiemout=1), 'not _tiemout'),
        (lambda producer: producer.rpc_queue_echo(_tiemout=1, _b=1), 'not _b, _tiemout'),
        (lambda producer: producer.message_built(1, _kye='x'), 'message_built.. takes _key, .* not _kye'),
    ],
)
def test_an_argument_that_begins_with_an_underscore_and_is_none_of_ours_is_refused(bench, call, fault):
    class Built(EchoProducer):
        def build_message_built(self, value, _own=None):
            return messaging.MessageCommand('built', [value, _own])

    with pytest.raises(TypeError, match=fault):
        call(bench.producer(Built))


def test_a_builder_may_take_it(bench):
    class Built(EchoProducer):
        def build_message_one(self, value, _own=None):
            return messaging.MessageCommand('built', [value, _own])

        def build_rpc_any(self, **kwds):
            return messaging.RpcCommand('echo', kwds)

    queue = bench.collect()
    producer = bench.producer(Built)
    producer.message_one(1, _own=2).wait(TIMEOUT)
    assert bench.get(queue).parameters == [1, 2]
    bench.bare.queue_delete(queue)
    bench.run(Echo())
    assert producer.rpc_any(_any=3).value == {'_any': 3}


@pytest.mark.parametrize('kind', ['', 'future_', 'gather_', 'queue_'])
def test_a_builder_of_requests_that_makes_a_message_is_told(bench, kind):
    class Built(EchoProducer):
        def build_rpc_echo(self):
            return messaging.MessageCommand('echo')

    with pytest.raises(messaging.ConfigurationError, match=r'Built\.build_rpc_echo\(\) must return a request'):
        getattr(bench.producer(Built), f'rpc_{kind}echo')()


@pytest.mark.parametrize(
    ('kind', 'option'), [('future', '_queue_only'), ('queue', '_timeout'), ('queue', '_max_retry')]
)
def test_an_option_that_a_kind_of_call_cannot_heed_is_refused(bench, kind, option):
    with pytest.raises(TypeError, match=rf'rpc_{kind}_echo\(\) takes _key, .* not {option}'):
        getattr(bench.producer(), f'rpc_{kind}_echo')(**{option: 1})


def test_an_rpc_to_a_name_that_has_a_message_handler_only_says_so(bench, failing):
    reply = bench.producer().rpc_note()
    assert isinstance(reply, messaging.MessageResultError)
    assert reply.text.startswith(
        "no handler for command 'note' as an RPC: it has a MessageHandler, which does not answer"
    )
    assert bench.producer().rpc_missing().text == "no handler for command 'missing'"
    assert failing.seen.empty()
