"""Directives that make parts of the reference from the code, so that what is added there is here as well.

``.. variables::``
    the table of the environment's variables, from ``postage/settings.py``
``.. commands::``
    a section for each command of ``postage``, from click
``.. faults::``
    a table from what is done to programs to what comes of it, from the names of the tests in the files that it lists
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from postage.broker.__main__ import parser_of
from postage.cli.main import postage
from postage.settings import VARIABLES

ROOT = Path(__file__).parents[2]


class Variables(SphinxDirective):
    """The variables of the environment."""

    def run(self) -> list[nodes.Node]:
        lines = ['.. list-table::', '   :header-rows: 1', '   :widths: 30 40 12 18', '']
        lines += row('Variable', 'Meaning', 'Default', 'In a program')
        for each in VARIABLES:
            default = each.default if each.default in ('none', 'off') or ',' in each.default else f'``{each.default}``'
            lines += row(f'``{each.name}``', each.meaning, default, each.elsewhere)
        return self.parse_text_to_nodes('\n'.join(lines))


def row(*cells: str) -> list[str]:
    """A row of a list-table."""
    return [f'   {"*" if number == 0 else " "} - {cell}' for number, cell in enumerate(cells)]


class Commands(SphinxDirective):
    """What each command does, and its arguments and options."""

    def run(self) -> list[nodes.Node]:
        context = click.Context(postage, info_name='postage')
        sections = [
            '\n'.join(section(command, context))
            for command, context in commands_of(postage, context)
            if command is not postage
        ]
        return self.parse_text_to_nodes('\n\n'.join(sections), allow_section_headings=True)


def commands_of(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """A command, and all those below it, each with the context in which its help is made."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands_of(below, click.Context(below, context, info_name=name))


def section(command: click.Command, context: click.Context) -> Iterator[str]:
    """The section of a command, in reStructuredText."""
    path = context.command_path
    yield from (path, '-' * len(path), '')
    if path == 'postage broker':
        yield from literal(parser_of(path).format_help())
        return
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece]
    yield from literal(' '.join([path, *pieces]))
    # click's own sign for "as it stands"; the paragraphs are those of the docstring.
    yield from escaped(command.help or '').replace('\b', '').splitlines()
    yield ''
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and '--help' not in parameter.opts:
            yield from (f'``{record[0]}``', f'    {escaped(record[1]) or "—"}', '')


def escaped(text: str) -> str:
    """Plain text, as reStructuredText."""
    for character in '\\*`|_':
        text = text.replace(character, f'\\{character}')
    return text


def literal(text: str) -> Iterator[str]:
    """A block that is shown as it is."""
    yield from ('.. code:: text', '')
    yield from (f'    {line}' for line in text.rstrip('\n').splitlines())
    yield ''


class Faults(SphinxDirective):
    """What is done to programs, and what comes of it."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        lines = ['.. list-table::', '   :header-rows: 1', '   :widths: 35 65', '']
        lines += row('What happens', 'What comes of it')
        for name in self.content:
            path = ROOT / name
            self.env.note_dependency(str(path))
            fault, sentences = sentences_of(path)
            lines += [f'   * - {escaped(fault)}', f'     - - {escaped(sentences[0])}']
            lines += [f'       - {escaped(sentence)}' for sentence in sentences[1:]]
        return self.parse_text_to_nodes('\n'.join(lines))


def sentences_of(path: Path) -> tuple[str, list[str]]:
    """What the tests of a file do, and what each of them shows."""
    module = ast.parse(path.read_text(encoding='utf-8'))
    does = (ast.get_docstring(module) or '').replace('``', '').partition('\n\n')[0]
    names = [node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')]
    sentences = [name.removeprefix('test_').replace('_', ' ') for name in names]
    return ' '.join(does.split()), [f'{sentence[0].upper()}{sentence[1:]}' for sentence in sentences]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive('variables', Variables)
    app.add_directive('commands', Commands)
    app.add_directive('faults', Faults)
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
