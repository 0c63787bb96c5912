"""Speak to applications by every key there is: python control.py NAME [GROUP ...] [--quit]"""

import sys

from postage import messaging
from postage.generic_application import GenericApplicationExchange


class Control(messaging.GenericProducer):
    eks = [(GenericApplicationExchange, 'nobody')]


def ping(key):
    """Ask everybody whom the key reaches, and return the fingerprints that come within a second."""
    queue = control.rpc_queue_ping(_key=key)
    try:
        answers = control.consume_rpc(queue, result_len=100, timeout=1)
    except messaging.TimeoutError as error:
        answers = error.results
    return [answer.body['content']['value'] for answer in answers]


def say(key):
    control.message_say(f'to {key}', _key=key)


words = [word for word in sys.argv[1:] if word != '--quit'] or ['monitor']
name, *groups = words
control = Control(messaging.Fingerprint('control', 'controller'))

found = ping(name)
if not found:
    sys.exit(f'no application is named {name!r}')
uids = ['{pid}@{host}'.format(**fingerprint) for fingerprint in found]
host = found[0]['host']
print(len(found), 'answered the ping:', *sorted(uids))

# One by one, all of a name, all on a host, all of a name on a host.
for key in [*uids, name, f'@{host}', f'{name}@{host}']:
    say(key)

# One in turn, for each of them.
for _ in found:
    say(f'{name}/rr')
    say(f'{name}@{host}/rr')

for group in groups:
    say(f'{name}#{group}')
    say(f'{name}#{group}/rr')

# A group can be joined while the application runs.
control.message_join_group({'group_name': 'volunteers'}, _key=uids[0]).wait()
control.rpc_ping(_key=uids[0])  # answered once the command before it has been handled
say(f'{name}#volunteers')

if '--quit' in sys.argv:
    control.message_quit(_key=name)
