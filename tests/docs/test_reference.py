"""The reference has every public name, variable, error and command, each once, and its example of bytes is true."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click
import docutils.nodes
import pika.frame
import pika.spec
import pytest

import postage
from postage import errors, settings
from postage.amqp import frames
from postage.cli.main import postage as command_line
from postage.messaging import JsonEncoder, Message, MessageCommand
from support.pages import DOCS, ROOT, blocks, parse

pytestmark = pytest.mark.timeout(300)  # to make the site, on a machine that does much else

REFERENCE = DOCS / 'reference'
PUBLIC = sorted(
    module.name
    for module in pkgutil.walk_packages(postage.__path__, 'postage.')
    if not module.name.endswith('__main__') and hasattr(importlib.import_module(module.name), '__all__')
)
MODULES = ('errors', 'messaging', 'microthreads', 'missive')  # from which a program takes names
INTERNAL_VARIABLES = {'POSTAGE_RESTARTS', 'POSTAGE_RMQ_', 'POSTAGE_RUN'}  # from one run to the next; beginnings


def documented() -> list[str]:
    """The names that the pages of the reference take from the code."""
    directive = re.compile(r'^\.\. auto(?:class|function|exception|data):: (\S+)$', re.MULTILINE)
    return [name for path in REFERENCE.glob('*.rst') for name in directive.findall(path.read_text())]


def resolved(name: str) -> Any:
    module, _, attribute = name.rpartition('.')
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize('module', PUBLIC)
def test_every_public_name_is_in_the_reference_once(module: str) -> None:
    times = Counter(id(resolved(name)) for name in documented())
    found = {name: times[id(resolved(f'{module}.{name}'))] for name in importlib.import_module(module).__all__}
    wrong = {name: count for name, count in found.items() if count != 1}
    assert not wrong, (
        f'in the reference so many times: {wrong}. Each name of {module}.__all__ needs one line such as '
        f'`.. autoclass:: {module}.NAME` in a page of docs/reference (errors in errors.rst, with what to do)'
    )


@pytest.mark.parametrize('module', PUBLIC)
def test_what_can_be_imported_from_a_public_module_is_public(module: str) -> None:
    names = importlib.import_module(module)
    own = {
        name
        for name, value in vars(names).items()
        if not name.startswith('_')
        and not isinstance(value, types.ModuleType)
        and str(getattr(value, '__module__', '')).startswith('postage')
    }
    told_as_settings = {'global_hup'}  # in docs/reference/settings.rst
    assert own - set(names.__all__) - told_as_settings == set(), f'{module}.__all__ lacks these, or they want a _'


def used(program: str) -> Iterator[tuple[str, str]]:
    """The modules of Postage and the names in them that a program imports, or takes from a module."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split('.')[0] == 'postage':
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES:
            yield f'postage.{node.value.id}', node.attr


def test_what_the_programs_of_the_pages_use_is_in_the_reference() -> None:
    there = {id(resolved(name)) for name in documented()}
    programs = {page: '\n'.join(blocks(page, 'python')) for page in [ROOT / 'README.rst', *DOCS.rglob('*.rst')]}
    found = {(page.name, *name) for page, program in programs.items() for name in used(program)}
    assert len(found) > 100
    values = {(page, module, name): resolved(f'{module}.{name}') for page, module, name in found}
    missing = [
        use for use, value in values.items() if not isinstance(value, types.ModuleType) and id(value) not in there
    ]
    assert not missing, f'docs/reference has none of {sorted(missing)}'


def errors_of(base: type[BaseException]) -> Iterator[type[BaseException]]:
    yield base
    for derived in base.__subclasses__():
        if derived.__module__.startswith('postage.'):
            yield from errors_of(derived)


def test_every_error_is_in_the_index_which_says_what_to_do() -> None:
    assert PUBLIC  # all modules are loaded, and with them the errors
    text = (REFERENCE / 'errors.rst').read_text()
    entries = re.findall(r'^\.\. autoexception:: (\S+)\n\n   \*\*What to do:\*\* \S', text, re.MULTILINE)
    # Those of the command line are told on the terminal, and no program can catch them.
    public = {error for error in errors_of(errors.PostageError) if not error.__module__.startswith('postage.cli.')}
    missing = sorted(f'{error.__module__}.{error.__qualname__}' for error in public - set(map(resolved, entries)))
    assert not missing, f'docs/reference/errors.rst has no `.. autoexception::` with **What to do:** for {missing}'


def test_every_variable_is_in_the_table() -> None:
    sources = [path.read_text() for path in (ROOT / 'postage').rglob('*.py')]
    times = Counter(name for source in sources for name in re.findall(r'POSTAGE_[A-Z_]+', source))
    named = {name for name in times if not name.endswith('__')}
    there = {variable.name for variable in settings.VARIABLES}
    options = {name for name in named if name.startswith('POSTAGE_RUN_')}  # one row stands for them
    missing = named - there - options - INTERNAL_VARIABLES
    assert not missing, f'postage/settings.py has no Variable in VARIABLES for {sorted(missing)}'
    # Each is once in the table itself; POSTAGE_RMQ_ is read as a beginning.
    gone = [name for name in there if times[name] < 2 and not name.startswith('POSTAGE_RMQ_')]
    assert not gone, f'nothing reads {gone}, which VARIABLES in postage/settings.py has'


@pytest.mark.parametrize('name', ['host', 'vhost', 'user', 'password'])
def test_the_default_of_a_variable_is_the_one_that_counts(name: str) -> None:
    found = settings.broker_settings(environ={})
    values = {'host': found.endpoints[0].host, 'vhost': found.vhost, 'user': found.user}
    values['password'] = found.password.reveal()
    (variable,) = [each for each in settings.VARIABLES if each.name == f'POSTAGE_{name.upper()}']
    assert variable.default == values[name]


def commands(command: click.Command, context: click.Context) -> Iterator[str]:
    yield context.command_path
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, click.Context(below, context, info_name=name))


def test_every_command_has_its_section_on_the_site(site_text: dict[str, str]) -> None:
    paths = list(commands(command_line, click.Context(command_line, info_name='postage')))[1:]
    headings = re.findall(r'<h2>([^<¶]+)', site_text['reference/commands'])
    assert headings == paths


def test_what_the_code_makes_is_on_the_site(site_text: dict[str, str]) -> None:
    assert all(f'>{each.name}<' in site_text['reference/settings'] for each in settings.VARIABLES)
    assert 'id="postage.messaging.GenericProducer.flush"' in site_text['reference/messaging']
    assert '--delay-confirms' not in site_text['reference/commands']
    assert '--vhost NAME' in site_text['reference/commands']
    assert '--strict' in site_text['reference/commands']


def test_what_happens_when_is_told_by_the_tests(site_text: dict[str, str]) -> None:
    text = site_text['explanation/what_happens_when']
    assert 'Nothing confirmed is lost when connections are cut<' in text
    assert 'A message comes back after each delay and is dead after the last<' in text


# The wire format


def named(name: str) -> str:
    literal = parse(REFERENCE / 'wire.rst').findall(docutils.nodes.literal_block)
    (block,) = [block for block in literal if block['names'] == [name]]
    return block.astext()


def test_the_bytes_of_the_page_are_those_that_pika_reads() -> None:
    data, decoded = bytes.fromhex(named('frames')), []
    while data:
        length, frame = pika.frame.decode_frame(data)
        decoded.append(frame)
        data = data[length:]
    method, header, body = decoded
    assert {frame.channel_number for frame in decoded} == {1}
    assert isinstance(method.method, pika.spec.Basic.Publish)
    assert (method.method.exchange, method.method.routing_key, method.method.mandatory) == ('greetings', 'hello', False)
    assert header.body_size == len(body.fragment) == 206
    properties = header.properties
    assert (properties.content_type, properties.delivery_mode, properties.message_id) == ('application/json', 2, 'm1')
    assert body.fragment.decode() == named('body')


def test_the_bytes_of_the_page_are_those_that_postage_writes() -> None:
    message = MessageCommand('echo', 'hi')
    message.fingerprint(name='ada', type='application', pid='7', host='h', user='u', vhost='/')
    written = frames.publish_frames(
        1,
        frames.publish_arguments('greetings', 'hello', False),
        frames.usual_properties('application/json', 2, 'm1'),
        JsonEncoder().encode(message.body),
        131072,
    )
    assert written == bytes.fromhex(named('frames'))


def test_the_pieces_of_the_page_are_the_bytes_before_the_body() -> None:
    fields = parse(REFERENCE / 'wire.rst').findall(docutils.nodes.field_name)
    literals = [[each.astext() for each in field.findall(docutils.nodes.literal)] for field in fields]
    pieces = [pieces for pieces in literals if pieces and re.fullmatch('[0-9a-f ]+', pieces[0])]
    joined = b''.join(bytes.fromhex(first) + ''.join(rest).encode() for first, *rest in pieces)
    without_ends = b''
    data = bytes.fromhex(named('frames'))
    while data:
        length, _ = pika.frame.decode_frame(data)
        without_ends, data = without_ends + data[: length - 1], data[length:]
    assert joined == without_ends[: -len(named('body'))]


def test_the_keys_of_a_body_are_those_of_the_page() -> None:
    text = (REFERENCE / 'wire.rst').read_text()
    assert all(f':``{key}``:' in text for key in Message().body)
    assert json.loads(named('body')).keys() == Message().body.keys()


def test_every_header_of_postage_is_on_the_page() -> None:
    written = {
        header
        for path in (ROOT / 'postage').rglob('*.py')
        if 'cli' not in path.parts
        for header in re.findall(r"'(x-postage-[a-z-]+[a-z])'", path.read_text())
    }
    missing = [header for header in written if f'``{header}``' not in (REFERENCE / 'wire.rst').read_text()]
    assert not missing, f'the table of docs/reference/wire.rst lacks {missing}'
