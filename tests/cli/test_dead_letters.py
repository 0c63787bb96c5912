"""``postage dead-letters``: letters listed, shown, edited, exported, purged and sent back."""

from __future__ import annotations

import io
import json
import signal
import sys
import time

import pytest
from click.testing import CliRunner

from postage import missive
from postage.cli.main import postage
from postage.dead_letters import SQLiteDeadLetters
from postage.missive.adapters.stdin import StdinAdapter
from postage.missive.adapters.wsgi import WSGIAdapter
from postage.missive.dlq.sqlite import SQLiteDLQ
from support.letters import letter, numbers
from support.messaging import EQK, TIMEOUT, Echo, EchoExchange, eventually
from support.proxy import Proxy


class Ran:
    """What a command has done."""

    def __init__(self, result):
        self.status = result.exit_code
        self.out = result.stdout
        self.err = result.stderr
        self.exception = result.exception

    @property
    def data(self):
        return json.loads(self.out)


@pytest.fixture
def call(where):
    """A function that calls a subcommand on the store, in this process."""

    def call(name, *arguments, input=None, **options):
        result = CliRunner().invoke(
            postage, ['dead-letters', name, *where, *map(str, arguments)], input=input, prog_name='postage', **options
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Ran(result)

    return call


# Looking


def test_an_empty_store_is_listed(call):
    ran = call('list')
    assert (ran.status, ran.out, ran.err) == (0, '', '0 letters\n')
    assert call('list', '--json').data == []


def test_letters_are_listed(call, store):
    store.put(letter(0, message='two\nlines'))
    store.put(letter(1, exception='some.module.OurError', attempts=4))
    ran = call('list')
    title, first, second = ran.out.splitlines()
    assert title.split() == ['id', 'message', 'id', 'died', 'queue', 'exception', 'attempts', 'message']
    assert 'ValueError' in first
    assert 'two lines' in first
    assert 'some.module.OurError' in second
    assert ran.err == '2 letters\n'


def test_letters_are_listed_for_other_programs(call, store):
    store.put(letter(0, died_at=0.5))
    store.put(letter(1, body=b'\xff'))
    first, second = call('list', '--json').data
    assert json.loads(first['body'])['content']['parameters'] == 0
    assert first['died_at'] == '1970-01-01T00:00:00.500Z'
    assert second['body_base64'] == '/w=='


def test_letters_are_counted_by_what_they_have_in_common(call, store):
    for number in range(5):
        store.put(letter(number, exception='KeyError' if number else 'ValueError'))
    ran = call('list', '--group', 'exception')
    _, first, second = ran.out.splitlines()
    assert first.split()[:2] == ['KeyError', '4']
    assert second.split()[:2] == ['ValueError', '1']
    assert ran.err == '5 letters in 2 groups\n'
    assert [(group['exception'], group['count']) for group in call('list', '--group', 'exception', '--json').data] == [
        ('KeyError', 4),
        ('ValueError', 1),
    ]


def test_letters_are_chosen(call, store):
    store.put(letter(0, queue='other'))
    store.put(letter(1, exception='KeyError'))
    store.put(letter(2, reason='rejected'))
    assert [each['queue'] for each in call('list', '--json', '--from', 'other').data] == ['other']
    assert [each['exception'] for each in call('list', '--json', '--exception', 'KeyError').data] == ['KeyError']
    assert [each['reason'] for each in call('list', '--json', '--reason', 'rejected').data] == ['rejected']
    assert len(call('list', '--json', '--limit', 2).data) == 2


def test_a_letter_is_shown(call, store):
    store.put(letter(7))
    (stored,) = store.letters()
    ran = call('show', stored.id)
    assert ran.status == 0
    for text in ('echo-queue', 'ValueError: no good', '"parameters": 7', 'message-7'):
        assert text in ran.out
    assert call('show', stored.id, '--json').data['properties']['message_id'] == 'message-7'


@pytest.mark.parametrize('name', ['show', 'edit', 'replay', 'purge', 'export'])
def test_a_letter_that_there_is_not_is_an_error(call, store, name):
    store.put(letter())
    ran = call(name, '99', *(['--yes'] if name == 'purge' else []))
    assert ran.status == 1
    assert ran.err.strip().endswith('has no letter 99')
    assert store.count() == 1


def test_letters_are_exported(call, store, path):
    for number in range(3):
        store.put(letter(number))
    file = path.with_name('letters.jsonl')
    ran = call('export', '--output', file)
    assert (ran.status, ran.out, ran.err) == (0, '', '3 letters written\n')
    bodies = [json.loads(json.loads(line)['body']) for line in file.read_text().splitlines()]
    assert [body['content']['parameters'] for body in bodies] == [0, 1, 2]
    assert len(call('export').out.splitlines()) == 3
    assert store.count() == 3


# Changing


def test_letters_are_purged(call, store):
    for number in range(3):
        store.put(letter(number, exception='KeyError' if number else 'ValueError'))
    ran = call('purge', '--yes', '--exception', 'KeyError')
    assert (ran.status, ran.out) == (0, '2 letters deleted\n')
    assert numbers(store.letters()) == [0]
    assert call('purge', '--yes', '--json').data == {'deleted': 1}


def test_nothing_is_purged_before_the_question_is_answered(call, store):
    store.put(letter())
    ran = call('purge', input='n\n')
    assert ran.status == 1
    assert 'Delete 1 letter from ' in ran.err
    assert call('purge', input='').status == 1
    assert store.count() == 1
    assert call('purge', input='y\n').status == 0
    assert store.count() == 0


def test_a_letter_gets_a_new_body(call, store):
    store.put(letter(0))
    (stored,) = store.letters()
    body = json.dumps({**json.loads(stored.letter.body), 'content': {'parameters': 7}})
    ran = call('edit', stored.id, '--body', '-', input=body)
    assert (ran.status, ran.out) == (0, f'letter {stored.id} was changed\n')
    assert numbers(store.letters()) == [7]


def test_a_letter_is_edited_in_the_users_editor(call, store, path):
    store.put(letter(0))
    (stored,) = store.letters()
    editor = path.with_name('editor.py')
    editor.write_text(
        'import sys\ntext = open(sys.argv[1]).read()\n'
        'open(sys.argv[1], "w").write(text.replace(\'"parameters": 0\', \'"parameters": 7\'))\n'
    )
    assert call('edit', stored.id, env={'EDITOR': f'{sys.executable} {editor}'}).status == 0
    assert numbers(store.letters()) == [7]
    editor.write_text('')
    assert call('edit', stored.id, env={'EDITOR': f'{sys.executable} {editor}'}).out.endswith('is as it was\n')


def test_a_body_that_is_json_no_more_has_to_be_meant(call, store):
    store.put(letter(0))
    (stored,) = store.letters()
    ran = call('edit', stored.id, '--body', '-', input='{')
    assert ran.status == 1
    assert 'is not JSON, as the old one is' in ran.err
    assert list(store.letters()) == [stored]
    assert call('edit', stored.id, '--body', '-', '--force', input='{').status == 0
    assert store.get(stored.id).letter.body == b'{'


@pytest.mark.parametrize(
    ('body', 'fault'),
    [
        ('{"content": {"parameters": 7}}', "the field 'type' is missing"),
        ('[]', 'a message must be a dictionary'),
        ('{"type": "command", "name": "echo", "category": "letter", "content": {}}', "the field 'category' must be"),
    ],
)
def test_a_body_that_is_no_message_has_to_be_meant(call, store, body, fault):
    store.put(letter(0))
    (stored,) = store.letters()
    ran = call('edit', stored.id, '--body', '-', input=body)
    assert ran.status == 1
    assert 'the new body is no message' in ran.err
    assert fault in ran.err
    assert list(store.letters()) == [stored]
    assert call('edit', stored.id, '--body', '-', '--force', input=body).status == 0
    assert store.get(stored.id).letter.body == body.encode()


def test_a_letter_that_was_no_message_to_its_processor_has_to_become_one(call, store):
    store.put(letter(0, body=b'{"type": "command"}', reason='undecodable'))
    (stored,) = store.letters()
    assert 'no message' in call('edit', stored.id, '--body', '-', input='{"type": "status"}').err
    whole = '{"type": "command", "name": "echo", "category": "message", "content": {"parameters": 1}}'
    assert call('edit', stored.id, '--body', '-', input=whole).status == 0


def test_a_letter_of_another_programs_form_keeps_it(call, store):
    store.put(letter(0, body=b'{"label": "sign-in"}'))
    (stored,) = store.letters()
    assert call('edit', stored.id, '--body', '-', input='{"label": "sign-out"}').status == 0


def test_a_letter_gets_another_queue(call, store):
    store.put(letter(0))
    (stored,) = store.letters()
    assert call('edit', stored.id, '--to', 'another').status == 0
    assert store.get(stored.id).letter.queue == 'another'
    assert call('edit', stored.id, '--to', 'exchange:key').status == 2


# Mistakes


@pytest.mark.parametrize('options', [[], ['--store', 'a', '--queue', 'b']])
def test_a_command_needs_one_store(options):
    result = CliRunner().invoke(postage, ['dead-letters', 'list', *options])
    assert result.exit_code == 2
    assert 'say which store' in result.stderr


def test_a_store_that_does_not_exist_is_an_error_in_one_line(path):
    result = CliRunner().invoke(postage, ['dead-letters', 'list', '--store', str(path)])
    assert result.exit_code == 1
    assert result.stderr == f'Error: the store {path} does not exist\n'


def test_a_queue_that_does_not_exist_is_an_error_in_one_line(bench):
    result = CliRunner().invoke(postage, ['dead-letters', 'list', '--queue', 'nowhere'])
    assert result.exit_code == 1
    assert "Error: the queue 'nowhere' does not exist\n" in result.stderr


def test_a_broker_that_is_down_is_an_error_in_one_line(monkeypatch):
    monkeypatch.setenv('POSTAGE_URL', 'amqp://guest:guest@127.0.0.1:1/%2F')
    monkeypatch.setenv('POSTAGE_CONNECT_TIMEOUT', '0.1')
    result = CliRunner().invoke(postage, ['dead-letters', 'list', '--queue', 'dead'])
    assert result.exit_code == 1
    assert 'Error: no broker at amqp://guest@127.0.0.1:1' in result.stderr


# Replay


class Replaying:
    """A store beside a broker with the queue that its letters came from."""

    def __init__(self, bench, store, where):
        self.bench = bench
        self.store = store
        self.where = where
        bench.consumer().close()  # the queue is there


@pytest.fixture(params=['sqlite', 'queue'])
def replaying(request, bench, path):
    from postage.dead_letters import QueueDeadLetters

    store = SQLiteDeadLetters(path) if request.param == 'sqlite' else QueueDeadLetters('dead')
    with store:
        yield Replaying(bench, store, ['--store', str(path)] if request.param == 'sqlite' else ['--queue', 'dead'])


def replay(replaying, *arguments):
    result = CliRunner().invoke(postage, ['dead-letters', 'replay', *replaying.where, *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ran(result)


def test_letters_go_back_to_their_queue(replaying):
    properties = {'content_type': 'application/json', 'message_id': 'the-id', 'headers': {'colour': 'red'}}
    replaying.store.put(letter(7, properties={**properties, 'user_id': 'another'}))
    ran = replay(replaying)
    assert (ran.status, ran.out) == (0, '1 letter sent\n')
    got = replaying.bench.get('echo-queue')
    assert got.parameters == 7
    assert (got.properties.message_id, got.properties.headers) == ('the-id', {'colour': 'red'})
    assert replaying.store.count() == 0


def test_letters_go_where_they_are_told_to(replaying):
    collected = replaying.bench.collect(key='other-rk')
    replaying.store.put(letter(1))
    assert replay(replaying, '--to', f'{EchoExchange.name}:other-rk').status == 0
    assert replaying.bench.get(collected).parameters == 1
    replaying.store.put(letter(2))
    assert replay(replaying, '--to', collected).status == 0
    assert replaying.bench.get(collected).parameters == 2
    assert replaying.bench.count('echo-queue') == 0


def test_only_those_that_are_meant_are_sent(replaying):
    for number in range(4):
        replaying.store.put(letter(number, exception='KeyError' if number % 2 else 'ValueError'))
    assert replay(replaying, '--exception', 'KeyError', '--json').data == {'sent': 2, 'repeated': 0, 'failures': {}}
    (first, _) = replaying.store.letters()
    assert replay(replaying, first.id).out == '1 letter sent\n'
    assert [replaying.bench.get('echo-queue').parameters for _ in range(3)] == [1, 3, 0]
    assert numbers(replaying.store.letters()) == [2]


def test_a_letter_that_no_queue_takes_stays(replaying):
    replaying.store.put(letter(0, queue='gone'))
    replaying.store.put(letter(1))
    ran = replay(replaying)
    assert ran.status == 1
    assert ran.out == '1 letter sent\n'
    assert 'was not sent: no queue took' in ran.err
    assert numbers(replaying.store.letters()) == [0]


def test_a_letter_that_came_from_no_queue_stays_until_it_is_said_where_to(replaying):
    replaying.store.put(letter(0, queue='', exchange='', routing_key=''))
    replaying.store.put(letter(1))
    (first, _) = replaying.store.letters()
    ran = replay(replaying)
    assert (ran.status, ran.out) == (1, '1 letter sent\n')
    told, total = ran.err.splitlines()
    assert told.startswith(f'letter {first.id} was not sent: it came from no queue')
    assert '--to' in told
    assert total == '1 letter not sent, and still in the store'
    assert numbers(replaying.store.letters()) == [0]
    assert replay(replaying, '--to', 'echo-queue').status == 0
    assert [replaying.bench.get('echo-queue').parameters for _ in range(2)] == [1, 0]


def by_stdin(processor):
    StdinAdapter(missive.RawMessage, processor, io.BytesIO(b'no good\n')).run()


def by_http(processor):
    adapter = WSGIAdapter(missive.RawMessage, processor)
    adapter.app.test_client().post('/', data=b'no good')
    adapter.close()


@pytest.mark.parametrize('by', [by_stdin, by_http])
def test_letters_of_other_transports_are_replayed_where_they_are_told_to(bench, path, by):
    bench.consumer().close()
    processor = missive.Processor()
    with SQLiteDLQ(path) as dead_letters:
        processor.set_dlq(dead_letters)
        by(processor)
        replaying = Replaying(bench, dead_letters.letters, ['--store', str(path)])
        ran = replay(replaying, '--json')
        assert ran.status == 1
        ((id, why),) = ran.data['failures'].items()
        assert '--to' in why
        assert replay(replaying, '--to', 'echo-queue', id).out == '1 letter sent\n'
        assert len(dead_letters) == 0
    assert bench.get('echo-queue').data == b'no good'


def test_a_broker_that_confirms_nothing_is_given_up(bench, path, monkeypatch):
    monkeypatch.setattr('postage.dead_letters.replay.TIMEOUT', 0.5)
    monkeypatch.setattr('postage.dead_letters.replay.BATCH', 20)
    with SQLiteDeadLetters(path) as store, Proxy.before(bench.broker) as proxy:
        for number in range(30):
            store.put(letter(number))
        monkeypatch.setenv('POSTAGE_URL', proxy.url(bench.broker.url))
        bench.producer()  # whose connection it shares
        proxy.swallow()
        began = time.monotonic()
        ran = replay(Replaying(bench, store, ['--store', str(path)]))
        assert time.monotonic() - began < 5
        proxy.cut()
        proxy.resume()
        assert store.count() == 30
    assert (ran.status, ran.out) == (1, '0 letters sent\n')
    assert ran.err.count('was not sent: the broker has not confirmed it within 0.5 s') == 20
    assert ran.err.endswith('given up: the broker confirms nothing; the letters that follow were not tried\n')


def test_letters_are_sent_at_a_rate(replaying):
    for number in range(20):
        replaying.store.put(letter(number))
    began = time.monotonic()
    assert replay(replaying, '--rate', 20).out == '20 letters sent\n'
    assert 0.9 < time.monotonic() - began < 5


def test_a_letter_without_an_id_gets_one_that_stays_the_same(replaying):
    replaying.store.put(letter(7, properties={}))
    replay(replaying)
    assert replaying.bench.get('echo-queue').properties.message_id.startswith('dead-letter-')


def test_a_replay_that_is_killed_loses_and_forgets_none(replaying, run):
    total = 300
    for number in range(total):
        replaying.store.put(letter(number))
    killed = run('replay', *replaying.where, '--rate', 200)
    eventually(lambda: replaying.bench.count('echo-queue') >= 60)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    eventually(lambda: replaying.store.count() > 0)
    left = replaying.store.count()
    sent = replaying.bench.count('echo-queue')
    assert left + sent >= total
    assert left < total
    ran = replay(replaying)
    assert ran.status == 0
    assert f'{left} letters sent' in ran.out
    got = [replaying.bench.get('echo-queue') for _ in range(left + sent)]
    ids = {each.properties.message_id: each.parameters for each in got}
    assert sorted(ids.values()) == list(range(total))  # what came twice came under one id
    assert replaying.store.count() == 0


def test_letters_are_replayed_while_messages_flow(replaying):
    processor = Echo()
    replaying.bench.run(processor)
    producer = replaying.bench.producer()
    for number in range(100):
        replaying.store.put(letter(number))
    for number in range(100, 150):
        producer.message_echo(number)
    assert replay(replaying, '--rate', 500).status == 0
    assert sorted(processor.seen.take(150)) == list(range(150))
    producer.flush(TIMEOUT)
    assert EQK
