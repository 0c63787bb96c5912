"""Imports run one way, between the parts of Postage and within each; read from the sources, type checkers' included."""

from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import postage

PACKAGE = Path(postage.__file__).parent

MAY_IMPORT = {
    '': {'messaging'},
    'errors': set(),
    'printable': set(),
    'secret': set(),
    'sparingly': set(),
    'living': set(),
    'settings': {'errors', 'printable', 'secret'},
    'program': {'errors', 'printable', 'secret', 'settings'},
    'microthreads': set(),
    'amqp': {'errors', 'living', 'printable', 'settings', 'sparingly'},
    'messaging': {
        'errors',
        'living',
        'printable',
        'secret',
        'settings',
        'sparingly',
        'program',
        'microthreads',
        'amqp',
    },
    'generic_application': {
        'errors',
        'printable',
        'secret',
        'settings',
        'sparingly',
        'microthreads',
        'amqp',
        'messaging',
    },
    'dead_letters': {
        'errors',
        'printable',
        'secret',
        'settings',
        'sparingly',
        'program',
        'microthreads',
        'amqp',
        'messaging',
    },
    'missive': {
        'errors',
        'printable',
        'secret',
        'settings',
        'sparingly',
        'microthreads',
        'amqp',
        'messaging',
        'generic_application',
        'dead_letters',
    },
    '__main__': {'cli'},
    'broker': {'errors', 'printable', 'secret'},
    'testing': {
        'errors',
        'printable',
        'secret',
        'settings',
        'sparingly',
        'microthreads',
        'amqp',
        'messaging',
        'broker',
    },
    'cli': {
        'errors',
        'printable',
        'secret',
        'settings',
        'sparingly',
        'microthreads',
        'amqp',
        'messaging',
        'generic_application',
        'dead_letters',
        'missive',
        'broker',
    },
}
"""For each part, the parts below it, itself left out; ``''`` is ``postage/__init__.py``."""

PIKA_CONNECTIONS = (
    'pika.BaseConnection',
    'pika.BlockingConnection',
    'pika.SelectConnection',
    'pika.adapters',
    'pika.channel',
    'pika.connection',
)


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module of the package."""
    for path in sorted(PACKAGE.rglob('*.py')):
        names = ['postage', *path.relative_to(PACKAGE).with_suffix('').parts]
        yield '.'.join(names[:-1] if names[-1] == '__init__' else names), path


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of a module's syntax."""
    return tuple(ast.walk(ast.parse(path.read_text(), str(path))))


def imports_of(module: str, path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a module imports, anywhere in its text, for type checkers too."""
    package = module if path.name == '__init__.py' else module.rpartition('.')[0]
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) - node.level + 1] if node.level else []
            source = '.'.join([*above, *filter(None, [node.module])])
            yield from (f'{source}.{alias.name}' for alias in node.names)


def part_of(name: str) -> str | None:
    """Return the part of Postage that a dotted name belongs to; ``None`` for what is not ours."""
    package, *rest = name.split('.')
    if package != 'postage':
        return None
    return rest[0] if rest and rest[0] in MAY_IMPORT else ''


def imported_from_above(module: str, path: Path) -> Iterator[str]:
    """Yield what a module imports though it does not lie below it."""
    part = part_of(module) or ''
    # `postage` itself, for its version, is open to all.
    allowed = {None, '', part, *MAY_IMPORT[part]}
    return (name for name in imports_of(module, path) if part_of(name) not in allowed)


def test_a_module_imports_only_what_lies_below_it() -> None:
    assert [(module, name) for module, path in modules() for name in imported_from_above(module, path)] == []


def test_what_is_imported_from_above_is_found(tmp_path: Path) -> None:
    source = tmp_path / 'module.py'
    source.write_text('import postage, postage.errors\nfrom postage.messaging import GenericProducer\nimport pika\n')
    assert list(imported_from_above('postage.amqp.module', source)) == ['postage.messaging.GenericProducer']


def module_of(name: str, known: Mapping[str, object]) -> str | None:
    """Return the module that a dotted name is, or is in; ``None`` where it is in none of those known."""
    while name and name not in known:
        name = name.rpartition('.')[0]
    return name or None


def circles(arrows: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the greatest sets of nodes of which each can be reached from each other one, those of one node left out.

    :param arrows: the nodes that each node points to
    """
    reached = {node: reachable(node, arrows) for node in arrows}
    found: list[set[str]] = []
    for node in sorted(arrows):
        circle = {other for other in reached[node] if node in reached[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def reachable(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    """Return the nodes that can be reached from one, itself left out unless there is a way back."""
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        new = arrows[ahead.pop()] - seen
        seen |= new
        ahead.extend(new)
    return seen


def circles_of_the_house() -> list[set[str]]:
    """Return the circles among the modules of Postage."""
    known = dict(modules())
    arrows = {
        module: {found for name in imports_of(module, path) if (found := module_of(name, known))} - {module}
        for module, path in known.items()
    }
    return circles(arrows)


def test_circles_are_found() -> None:
    arrows = {'a': {'b'}, 'b': {'c'}, 'c': {'a', 'd'}, 'd': {'e'}, 'e': {'d'}, 'f': {'a'}}
    assert circles(arrows) == [{'a', 'b', 'c'}, {'d', 'e'}]
    assert circles({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / 'module.py'
    source.write_text(
        'import a.b\nfrom .c import d\nfrom .. import e\nif TYPE_CHECKING:\n    from f import g\n'
        'def function():\n    from h import i\n'
    )
    assert sorted(imports_of('postage.part.module', source)) == ['a.b', 'f.g', 'h.i', 'postage.e', 'postage.part.c.d']


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles_of_the_house() == [], 'break the circle: a narrow protocol, or a module below both'


def named_of_pika(module: str, path: Path) -> Iterator[str]:
    """Yield the names of pika's connections that a module outside `amqp` imports or spells."""
    attributes = (ast.unparse(node) for node in nodes_of(path) if isinstance(node, ast.Attribute))
    # `pika.connection` is also where pika's parsed parameters live, which settings may know.
    spared = ('pika.connection',) if module == 'postage.settings' else ()
    named = (*imports_of(module, path), *attributes)
    return (name for name in named if name.startswith(PIKA_CONNECTIONS) and not name.startswith(spared))


def test_pikas_connections_are_known_in_amqp_alone() -> None:
    outside = [(module, path) for module, path in modules() if part_of(module) != 'amqp']
    assert [(module, name) for module, path in outside for name in named_of_pika(module, path)] == []


def test_pikas_connections_are_found_wherever_they_are_named(tmp_path: Path) -> None:
    source = tmp_path / 'module.py'
    source.write_text('import pika.connection\npika.BlockingConnection(pika.URLParameters())\n')
    assert list(named_of_pika('postage.program', source)) == ['pika.connection', 'pika.BlockingConnection']
    assert list(named_of_pika('postage.settings', source)) == ['pika.BlockingConnection']


def test_every_part_of_the_package_has_its_place_in_the_order() -> None:
    parts = {module.split('.')[1] for module, _ in modules() if '.' in module}
    assert parts <= set(MAY_IMPORT)


@pytest.mark.skipif('POSTAGE_TEST_INSTALLED' not in os.environ, reason='the tests do not run under tox')
def test_the_installed_package_is_what_is_tested() -> None:
    assert PACKAGE.is_relative_to(sys.prefix)
    assert (PACKAGE / 'py.typed').exists()
