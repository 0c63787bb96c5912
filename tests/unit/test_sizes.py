"""A function of the package fits on a screen, and a class has one reason to exist; counted in the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import postage

PACKAGE = Path(postage.__file__).parent

LONGEST_CLASS = 350  # lines, from its first decorator on
LONGEST_FUNCTION = 60


def too_long(path: Path) -> Iterator[str]:
    """Yield each class and each function of a file, wherever it stands, that is longer than it may be."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            limit = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno is not None
            lines = node.end_lineno - first + 1
            if lines > limit:
                yield f'{node.name} has {lines} lines, where {limit} are the most'


def test_no_class_and_no_function_is_too_long() -> None:
    modules = sorted(PACKAGE.rglob('*.py'))
    assert [f'{path.relative_to(PACKAGE)}: {found}' for path in modules for found in too_long(path)] == []


def test_what_is_too_long_is_found_wherever_it_stands(tmp_path: Path) -> None:
    source = tmp_path / 'module.py'
    source.write_text(
        'class Long:\n'
        + ('    @property\n    def right(self):\n' + 58 * '        pass\n')
        + ('    @property\n    def long(self):\n' + 59 * '        pass\n')
        + ('    async def waits(self):\n' + 60 * '        pass\n')
        + (169 * '    x = 1\n')
    )
    assert list(too_long(source)) == [
        'Long has 352 lines, where 350 are the most',
        'long has 61 lines, where 60 are the most',
        'waits has 61 lines, where 60 are the most',
    ]


def test_what_is_just_short_enough_is_left_alone(tmp_path: Path) -> None:
    source = tmp_path / 'module.py'
    source.write_text('class Short:\n' + 349 * '    x = 1\n' + 'def short():\n' + 59 * '    pass\n')
    assert list(too_long(source)) == []
