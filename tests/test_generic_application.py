"""Applications that are addressed by name, host, process and group."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from postage import errors, messaging
from postage.generic_application import GenericApplication, GenericApplicationExchange
from support.brokers import Broker
from support.fixtures import bench_on
from support.messaging import TIMEOUT, Bench, Seen, eventually
from support.programs import Program
from support.recovery import Control, Resident, Town

MONITORS = ['1@a', '2@a', '3@b']


@pytest.fixture
def bench(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench_on(broker, monkeypatch) as bench:
        yield bench


@pytest.fixture
def town(bench: Bench) -> Iterator[Town]:
    """Four applications; whatever they are told beyond what a test looks at is a failure of that test."""
    town = Town(bench)
    yield town
    town.running.stop()
    assert town.seen.empty(), f'somebody was reached who should not be: {town.seen.get_nowait()}'


# Whom the keys reach


@pytest.mark.parametrize(
    ('key', 'reached'),
    [
        pytest.param('monitor', MONITORS, id='name'),
        pytest.param('@a', ['1@a', '2@a', '4@a'], id='host'),
        pytest.param('monitor@a', ['1@a', '2@a'], id='name and host'),
        pytest.param('2@a', ['2@a'], id='process'),
        pytest.param('monitor#odd', ['1@a', '3@b'], id='group'),
    ],
)
def test_a_key_reaches_everybody_it_names_and_nobody_else(town: Town, key: str, reached: list[str]) -> None:
    assert town.reached(key) == reached


@pytest.mark.parametrize(
    ('key', 'sharing'),
    [
        pytest.param('monitor/rr', MONITORS, id='name'),
        pytest.param('monitor@a/rr', ['1@a', '2@a'], id='name and host'),
        pytest.param('monitor#odd/rr', ['1@a', '3@b'], id='group'),
    ],
)
def test_a_round_robin_key_is_spread_over_all_it_names(town: Town, key: str, sharing: list[str]) -> None:
    assert town.reached_in_turn(key) == sharing


def test_a_single_application_takes_all_of_a_round_robin_key(town: Town) -> None:
    assert town.reached_in_turn('monitor@b/rr') == ['3@b']


def test_equal_groups_of_other_names_are_other_groups(town: Town) -> None:
    assert town.reached('other#odd') == ['4@a']


def test_processes_are_reached_as_those_of_one_process_are(bench: Bench, run_program: Callable[..., Program]) -> None:
    """With the real pid and host, which a fingerprint has when nobody says otherwise."""
    program = """
        from postage import messaging, microthreads
        from postage.generic_application import GenericApplication

        class Speaker(GenericApplication):
            def start_consuming(self):
                super().start_consuming()
                print('ready')

            @messaging.MessageHandler('command', 'say')
            def msg_say(self, content):
                print(content['parameters'])

        scheduler = microthreads.MicroScheduler()
        scheduler.add_microthread(Speaker(messaging.Fingerprint('speaker'), groups=['all']))
        scheduler.run()
    """
    speakers = [run_program(unindent(program)) for _ in range(2)]
    for speaker in speakers:
        speaker.expect('ready')
    control = bench.producer(Control)
    host = socket.gethostname()
    for key in ('speaker', f'@{host}', f'speaker@{host}', 'speaker#all', *(f'{each.pid}@{host}' for each in speakers)):
        control.message_say(f'to <{key}>', _key=key)
    for _ in range(2):
        for key in ('speaker/rr', f'speaker@{host}/rr', 'speaker#all/rr'):
            control.message_say(f'in turn <{key}>', _key=key)
    for speaker in speakers:
        for key in ('speaker', f'@{host}', f'speaker@{host}', 'speaker#all', f'{speaker.pid}@{host}'):
            speaker.expect(f'to <{key}>')
        for key in ('speaker/rr', f'speaker@{host}/rr', 'speaker#all/rr'):
            speaker.expect(f'in turn <{key}>')
    control.message_quit(_key='speaker')
    for speaker in speakers:
        assert speaker.wait() == 0
        assert len(speaker.lines) == 1 + 5 + 3, speaker.output


def unindent(program: str) -> str:
    return '\n'.join(line.removeprefix(8 * ' ') for line in program.splitlines())


# Groups


def test_who_joins_a_group_is_reached_by_its_keys(town: Town) -> None:
    town.order('2@a', 'join_group', group_name='odd')
    assert town.reached('monitor#odd') == MONITORS
    assert town.reached_in_turn('monitor#odd/rr') == MONITORS


def test_who_leaves_a_group_is_reached_no_more_and_the_others_are(town: Town) -> None:
    town.order('1@a', 'leave_group', group_name='odd')
    assert town.reached('monitor#odd') == ['3@b']
    assert town.reached_in_turn('monitor#odd/rr') == ['3@b']


def test_who_leaves_a_group_is_reached_by_all_other_keys_as_before(town: Town) -> None:
    town.order('1@a', 'leave_group', group_name='odd')
    assert town.reached('monitor') == MONITORS
    assert town.reached_in_turn('monitor/rr') == MONITORS
    assert town.reached('1@a') == ['1@a']


def test_a_group_can_be_joined_and_left_again_and_again(town: Town) -> None:
    for _ in range(3):
        town.order('2@a', 'join_group', group_name='even')
        assert town.reached('monitor#even') == ['2@a']
        assert town.reached('monitor#even/rr') == ['2@a']
        town.order('2@a', 'leave_group', group_name='even')
        assert town.reached('monitor#even', at_least=0) == []


def test_joining_twice_and_leaving_what_was_never_joined_change_nothing(town: Town) -> None:
    town.order('1@a', 'join_group', group_name='odd')
    town.order('2@a', 'leave_group', group_name='odd')
    assert town.reached('monitor#odd') == ['1@a', '3@b']
    assert town.residents[0].groups == ['odd']


def test_a_program_may_join_and_leave_by_itself(town: Town) -> None:
    second = town.residents[1]
    second.join_group('odd')
    assert town.reached('monitor#odd') == MONITORS
    second.leave_group('odd')
    assert town.reached('monitor#odd') == ['1@a', '3@b']


def test_messages_for_a_group_wait_while_nobody_is_in_it(town: Town) -> None:
    town.order('2@a', 'join_group', group_name='even')
    town.order('2@a', 'leave_group', group_name='even')
    town.control.message_say('message', _key='monitor#even/rr').wait()
    town.order('2@a', 'join_group', group_name='even')
    assert town.seen.next() == ('2@a', 'message')


def test_everybody_of_a_name_can_be_told_to_join(town: Town) -> None:
    town.control.message_join_group({'group_name': 'new'}, _key='monitor').wait()
    for uid in MONITORS:
        town.control.rpc_ping(_key=uid)
    assert town.reached('monitor#new') == MONITORS


@pytest.mark.parametrize('parameters', [{}, {'group_name': ''}, {'group_name': 3}, 'odd'])
def test_a_command_that_names_no_group_is_rejected_and_the_application_goes_on(
    bench: Bench, town: Town, parameters: Any
) -> None:
    town.control.message_join_group(parameters, _key='2@a').wait()
    bench.log.expect('msg_join_group raised')
    assert town.residents[1].groups == []
    assert town.reached('2@a') == ['2@a']


# Ping


def test_ping_is_answered_with_the_fingerprint(town: Town) -> None:
    answer = town.control.rpc_ping(_key='3@b')
    assert answer.body['content']['value'] == town.residents[2].fingerprint
    assert answer.body['content']['value']['host'] == 'b'


def test_a_ping_by_round_robin_is_answered_by_each_in_turn(town: Town) -> None:
    answers = {town.control.rpc_ping(_key='monitor/rr').body['content']['value']['pid'] for _ in range(12)}
    assert answers == {'1', '2', '3'}


def test_everybody_who_is_pinged_can_be_collected(town: Town) -> None:
    queue = town.control.rpc_queue_ping(_key='monitor')
    answers = town.control.consume_rpc(queue, result_len=3, timeout=TIMEOUT)
    assert sorted(answer.body['content']['value']['pid'] for answer in answers) == ['1', '2', '3']


# One owner of a pid on a host


def test_a_second_owner_of_pid_and_host_in_this_process_is_refused(bench: Bench) -> None:
    bench.closing(Resident('monitor', 1, 'a'))
    with pytest.raises(errors.DuplicateApplication, match='1@a'):
        Resident('other', 1, 'a')


def test_a_second_owner_of_pid_and_host_in_another_process_is_refused(
    bench: Bench, run_program: Callable[..., Program]
) -> None:
    resident = bench.closing(Resident('monitor', 1, 'a'))
    other = run_program("""
from postage import errors, messaging
from postage.generic_application import GenericApplication
try:
    GenericApplication(messaging.Fingerprint('monitor', pid='1', host='a'))
except errors.DuplicateApplication as error:
    print('refused:', error)
    print(isinstance(error, errors.ResourceLocked), error.reply_code)
""")
    assert other.wait() == 0, other.output
    assert "'1@a'" in other.lines[0]
    assert other.lines[1:] == ['True 405']
    bench.run(resident)
    control = bench.producer(Control)
    assert control.rpc_ping(_key='1@a'), 'the first owner was harmed by the second'


def test_pid_and_host_are_free_again_once_their_owner_is_closed(bench: Bench) -> None:
    Resident('monitor', 1, 'a').close()
    bench.closing(Resident('monitor', 1, 'a'))


def test_a_refused_application_leaves_nothing_behind(bench: Bench) -> None:
    bench.closing(Resident('monitor', 1, 'a'))
    with pytest.raises(errors.DuplicateApplication):
        Resident('never', 1, 'a', groups=['seen'])
    assert 'never#seen' not in bench.broker.queues()


# What it is made from


def test_its_queues_are_named_after_name_host_and_process(bench: Bench) -> None:
    resident = bench.closing(Resident('monitor', 1, 'a', groups=['odd']))
    assert (resident.sid, resident.hid, resident.uid) == ('monitor', 'monitor@a', '1@a')
    assert sorted(bench.broker.queues()) == ['1@a', 'monitor', 'monitor#odd', 'monitor@a']


def test_its_own_queue_goes_with_it_and_shared_ones_stay(bench: Bench) -> None:
    Resident('monitor', 1, 'a', groups=['odd']).close()
    eventually(lambda: sorted(bench.broker.queues()) == ['monitor', 'monitor#odd', 'monitor@a'])


def test_shared_queues_expire_a_day_after_their_last_consumer(bench: Bench) -> None:
    bench.closing(Resident('monitor', 1, 'a', groups=['odd']))
    for queue in ('monitor', 'monitor@a', 'monitor#odd'):
        # The broker agrees to an equivalent declaration only.
        bench.bare.queue_declare(queue, durable=True, arguments={'x-expires': 24 * 60 * 60 * 1000})


@pytest.mark.parametrize(
    'fingerprint',
    [{}, None, messaging.Fingerprint(), {'name': 'monitor', 'pid': ''}, {'name': 'monitor', 'pid': '1', 'host': ''}],
    ids=['empty', 'none', 'no name', 'a name alone', 'empty host'],
)
def test_a_fingerprint_without_name_pid_or_host_is_a_clear_error(fingerprint: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match='name, pid and host'):
        GenericApplication(fingerprint)


@pytest.mark.parametrize('groups', ['odd', b'odd', {'odd': 1}, 7, [''], [None], [b'odd'], [1]], ids=repr)
def test_groups_that_are_no_list_of_names_are_a_clear_error(groups: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match='group'):
        GenericApplication(messaging.Fingerprint('monitor'), groups=groups)


@pytest.mark.parametrize(
    'groups', [('odd', 'even'), {'odd', 'even'}, ['odd', 'even', 'odd']], ids=['tuple', 'set', 'list']
)
def test_groups_may_be_any_collection_of_names(bench: Bench, groups: Any) -> None:
    resident = bench.closing(Resident('monitor', 1, 'a', groups=groups))
    assert sorted(resident.groups) == ['even', 'odd']


def test_a_fingerprint_is_accepted_as_object_and_as_dictionary(bench: Bench) -> None:
    fingerprint = messaging.Fingerprint('monitor', pid='1', host='a')
    bench.closing(GenericApplication(fingerprint)).close()
    assert bench.closing(GenericApplication(fingerprint.as_dict())).fingerprint == fingerprint.as_dict()


def test_the_exchange_can_be_replaced(bench: Bench) -> None:
    class OfMyOwn(GenericApplicationExchange):
        name = 'an-exchange-of-my-own'

    class Elsewhere(Resident):
        exchange_class = OfMyOwn

    resident = Elsewhere('monitor', 1, 'a')
    bench.run(resident)
    bench.producer(Control).message_say('here', _eks=[(OfMyOwn, 'monitor')])
    assert resident.seen.next() == ('1@a', 'here')


def test_its_logging_producer_accepts_any_call_until_it_is_replaced(bench: Bench) -> None:
    resident = bench.closing(Resident('monitor', 1, 'a'))
    resident.logging_producer.message_anything('at all', _key='whatever')
    noted = Seen()

    class Loud(Resident):
        class logging_producer:  # noqa: N801 - the name of the attribute
            message_log = noted.put

    bench.closing(Loud('monitor', 2, 'a')).logging_producer.message_log('said')
    assert noted.next() == 'said'
