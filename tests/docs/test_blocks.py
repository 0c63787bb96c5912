"""Every block of every page is run by a test, or compared with what a program prints, but for those in NOT_RUN.

A page's Python is run by the test that PYTHON names. Of each other block the first line is in RUN, with the test that
runs or compares it, or in NOT_RUN, with the reason.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import docutils.nodes
import pytest

from postage.broker.server import BrokerServer
from postage.messaging import keys
from postage.settings import broker_settings
from support.pages import DOCS, ROOT, blocks, parse
from support.ports import free_ports
from support.programs import Module, Program
from support.running import SHOP

TESTS = ROOT / 'tests'
PAGES = [ROOT / 'README.rst', ROOT / 'CONTRIBUTING.rst', *DOCS.rglob('*.rst'), *ROOT.glob('demos/*/README.rst')]
DEMOS = 'demos/test_demos.py::test_all_demos_bring_the_embedded_broker_and_name_whose_line_is_whose'
HERE = 'docs/test_blocks.py::'

PYTHON = {
    'README.rst': 'docs/test_readme.py::test_the_first_message_is_answered',
    'docs/api.rst': 'docs/test_api_page.py',
    'docs/calls.rst': 'docs/test_calls_page.py',
    'docs/concepts.rst': 'docs/test_concepts_page.py',
    'docs/doctor.rst': 'docs/test_doctor_page.py',
    'docs/embedded_broker.rst': 'docs/test_embedded_broker_page.py',
    'docs/failure.rst': 'docs/test_failure_page.py',
    'docs/guides/asyncio_and_threads.rst': 'docs/test_guides.py::test_handlers_of_every_colour_answer',
    'docs/guides/coming_from.rst': 'docs/test_frameworks.py',
    'docs/guides/tls.rst': 'docs/test_guides.py::test_the_program_of_the_guide_on_tls_connects',
    'docs/guides/*.rst': 'docs/test_guides.py::test_most_guides_are_one_program_that_prints_what_it_says',
    'docs/health.rst': 'docs/test_health_page.py',
    'docs/microthreads.rst': 'docs/test_microthreads_page.py',
    'docs/missive.rst': 'docs/test_missive_page.py',
    'docs/operations.rst': 'docs/test_operations_page.py',
    'docs/quick_start.rst': 'docs/test_quick_start_page.py',
    'docs/run.rst': 'docs/test_run_page.py',
    'docs/signing.rst': 'docs/test_signing_page.py',
    'docs/streams.rst': 'docs/test_streams_page.py',
    'docs/testing.rst': 'docs/test_testing_page.py',
    'docs/tutorial.rst': 'docs/test_tutorial_page.py::test_the_test_of_the_page_passes',
}

RUN = {
    'README.rst': {'python -m postage.broker': 'docs/test_readme.py::test_the_first_message_is_answered'},
    'docs/concepts.rst': {'apples 1': 'docs/test_concepts_page.py'},
    'docs/deployment.rst': {
        '[Unit]': 'docs/test_deployment_page.py::test_the_unit_starts_and_stops_what_it_says',
        'services:': 'docs/test_deployment_page.py::test_compose_starts_what_it_says_and_its_health_check_passes',
        'apiVersion: apps/v1': 'docs/test_deployment_page.py::test_kubernetes_starts_what_it_says_and_its_probes_pass',
    },
    'docs/doctor.rst': {
        'postage doctor amqp://localhost/ shop:Shipper': 'docs/test_doctor_page.py',
        'postage doctor amqp://localhost/ shop:components': 'docs/test_doctor_page.py',
        'RabbitMQ 4.3.6 at': 'docs/test_doctor_page.py::test_the_example_has_the_findings_of_the_page',
    },
    'docs/embedded_broker.rst': {'python -m postage.broker': f'{HERE}test_the_broker_says_that_it_is_ready'},
    'docs/failure.rst': {'postage dead-letters list': 'docs/test_failure_page.py'},
    'docs/guides/coming_from.rst': {
        'celery -A tasks worker': 'docs/test_frameworks.py::test_a_component_of_two_files_answers',
        'nameko run greeter': 'docs/test_frameworks.py::test_a_component_of_two_files_answers',
    },
    'docs/guides/tls.rst': {'export POSTAGE_URL=': f'{HERE}test_variables_are_read_as_their_pages_set_them'},
    'docs/guides/types.rst': {
        'python stock.py': 'docs/test_guides.py::test_the_programs_with_types_print_what_the_guide_says',
        '10.0': 'docs/test_guides.py::test_the_programs_with_types_print_what_the_guide_says',
    },
    'docs/health.rst': {
        'postage run shop:Prices --status': f'{HERE}test_a_component_with_a_status_is_probed',
        'postage probe --status': f'{HERE}test_a_component_with_a_status_is_probed',
    },
    'docs/operations.rst': {'postage ps': 'docs/test_operations_page.py::test_the_lines_for_a_terminal_run'},
    'docs/quick_start.rst': {
        'python -m postage.broker': f'{HERE}test_the_broker_says_that_it_is_ready',
        'Postage broker, for': f'{HERE}test_the_broker_says_that_it_is_ready',
    },
    'docs/reference/settings.rst': {'POSTAGE_VHOST=': f'{HERE}test_variables_are_read_as_their_pages_set_them'},
    'docs/reference/wire.rst': {
        '01 00 01 00': 'docs/test_reference.py::test_the_bytes_of_the_page_are_those_that_pika_reads',
        '{"type":"command"': 'docs/test_reference.py::test_the_bytes_of_the_page_are_those_that_pika_reads',
    },
    'docs/run.rst': {
        'postage run shop:Prices shop:Orders': 'docs/test_run_page.py',
        '[tool.postage]': 'docs/test_run_page.py',
    },
    'docs/signing.rst': {
        'python -c "import secrets': f'{HERE}test_the_line_that_makes_a_key_makes_one',
        'export POSTAGE_SIGNING_KEYS=': 'docs/test_signing_page.py::test_the_key_of_the_page_is_one',
    },
    'docs/testing.rst': {
        'python -m pytest -q': 'docs/test_testing_page.py::test_the_first_one_passes_by_itself_as_the_page_says',
        '1 passed': 'docs/test_testing_page.py::test_the_first_one_passes_by_itself_as_the_page_says',
    },
    'docs/tutorial.rst': {
        'postage broker': f'{HERE}test_the_broker_says_that_it_is_ready',
        'python pricing.py': 'docs/test_tutorial_page.py::test_prices_are_asked_for_as_the_page_says',
        '20 prices, 110 in all': 'docs/test_tutorial_page.py::test_prices_are_asked_for_as_the_page_says',
        **dict.fromkeys(
            (
                'python orders.py .',
                'postage send order',
                'postage dead-letters list',
                'id  message id',
                'python office.py register Bob',
                '1 letter sent',
                'python office.py report',
                "{'book': 1, 'tea': 1}",
            ),
            'docs/test_tutorial_page.py::test_the_bad_day_goes_as_the_page_says',
        ),
        'python notifier.py Nora': DEMOS,
        'python web.py 8000': DEMOS,
    },
}

INDEX = 'it takes the package index; .ci/run builds the same from a clone'
NOT_RUN = {
    'README.rst': {'python3 -m venv .venv': INDEX, 'pip download': INDEX},
    'CONTRIBUTING.rst': {
        'make test ': 'it is the suite itself; test_the_targets_of_make_that_it_names_are_there holds the names'
    },
    'docs/contributing.rst': {'make test ': 'it is CONTRIBUTING.rst'},
    'docs/architecture.rst': {'cli ': 'a drawing of the layers, which tests/unit/test_imports.py holds'},
    'docs/deployment.rst': {
        'mkdir -p /srv/shop': 'it changes the machine, as root',
        'systemd-analyze verify': 'it takes a machine that systemd runs; test_systemd_takes_the_unit verifies the unit',
    },
    'docs/guides/types.rst': {'pip install mypy': 'make lint has mypy read the same files'},
    'docs/microthreads.rst': {'concurrency = 1  ': 'a drawing of what happens when'},
    'docs/quick_start.rst': {'python3 -m venv .venv': INDEX},
    'docs/testing.rst': {'pip install postage pytest': INDEX},
    'docs/tutorial.rst': {
        'python3 -m venv .venv': INDEX,
        'pip install pytest': 'test_the_test_of_the_page_passes runs the test, where pytest is installed',
    },
}
"""The blocks that no test runs, by the beginning of their first line, and why."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def first_lines(page: Path) -> list[str]:
    """The first lines of the blocks that are not Python."""
    literal = parse(page).findall(docutils.nodes.literal_block)
    return [block.astext().split('\n')[0] for block in literal if 'python' not in block['classes']]


def test_every_page_with_python_has_a_test_that_runs_it() -> None:
    with_python = {name_of(page) for page in PAGES if '.. code:: python' in page.read_text()}
    others = {name_of(page) for page in DOCS.glob('guides/*.rst')} - set(PYTHON)
    assert with_python - others == set(PYTHON) - {'docs/guides/*.rst'}


@pytest.mark.parametrize('page', [page for page in PAGES if 'demos' not in page.parts], ids=name_of)
def test_every_other_block_is_run_or_has_a_reason_not_to_be(page: Path) -> None:
    told = [*RUN.get(name_of(page), {}), *NOT_RUN.get(name_of(page), {})]
    found = [[start for start in told if line.startswith(start)] for line in first_lines(page)]
    missing = [line for line, starts in zip(first_lines(page), found, strict=True) if len(starts) != 1]
    assert not missing, (
        f'tell in tests/docs/test_blocks.py, once, which test runs these blocks of {page.name}: {missing}'
    )
    assert sorted(start for starts in found for start in starts) == sorted(told)


def test_the_tests_that_are_named_are_there() -> None:
    named = {*PYTHON.values(), *(test for tests in RUN.values() for test in tests.values())}
    for test in named:
        file, _, function = test.partition('::')
        tree = ast.parse((TESTS / file).read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert function in functions if function else any(name.startswith('test_') for name in functions), test


def test_every_demo_is_run_as_its_readme_says() -> None:
    """By ``make demo``, which a test runs, or by tests of its own."""
    started = (ROOT / 'demos' / 'run_all.py').read_text() + (TESTS / 'docs' / 'test_guides.py').read_text()
    assert [folder.parent.name for folder in ROOT.glob('demos/*/README.rst') if folder.parent.name not in started] == []


# Those that have no page of their own


@pytest.mark.parametrize('page', ['embedded_broker.rst', 'quick_start.rst', 'tutorial.rst'])
def test_the_broker_says_that_it_is_ready(page: str, run_module: Callable[..., Module]) -> None:
    (line,) = [block for block in blocks(DOCS / page, 'sh') if re.match(r'(python -m postage\.|postage )broker', block)]
    (port,) = free_ports(1)
    words = shlex.split(re.sub(' --port 5672', '', line).replace('postage.broker', 'postage broker'))
    broker = run_module('postage', [*words[words.index('broker') :], '--port', str(port)])
    (promised,) = [block for block in blocks(DOCS / 'quick_start.rst', 'text') if block.startswith('Postage broker')]
    broker.expect(promised.replace('5672', str(port)))


def test_variables_are_read_as_their_pages_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*blocks(DOCS / 'guides' / 'tls.rst', 'sh'), *blocks(DOCS / 'reference' / 'settings.rst', 'sh')]
    set_there = dict(re.fullmatch(r'(?:export )?(POSTAGE_\w+)=(\S+).*', line).groups() for line in lines)  # type: ignore[union-attr]
    assert set(set_there) == {'POSTAGE_URL', 'POSTAGE_VHOST'}
    for name in ('POSTAGE_URL', 'POSTAGE_VHOST', 'POSTAGE_HOST'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('POSTAGE_VHOST', set_there['POSTAGE_VHOST'])
    assert broker_settings().vhost == 'development'
    monkeypatch.setenv('POSTAGE_URL', set_there['POSTAGE_URL'])
    found = broker_settings()
    assert str(found.endpoints[0]) == 'broker.example:5671'
    assert (found.user, found.password.reveal()) == ('user', 'password')


def test_the_line_that_makes_a_key_makes_one() -> None:
    line, _ = blocks(DOCS / 'signing.rst', 'sh')
    python, *words = shlex.split(line)
    assert python == 'python'
    made = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
    (key,) = keys.keys_of('here', None, {'POSTAGE_SIGNING_KEYS': f'2026-11:{made}'})
    assert key.id == '2026-11'


def test_a_component_with_a_status_is_probed(tmp_path: Path, run_module: Callable[..., Program]) -> None:
    (tmp_path / 'shop.py').write_text(SHOP)
    (port,) = free_ports(1)
    run, probe = (shlex.split(line.replace('9100', str(port)))[1:] for line in blocks(DOCS / 'health.rst', 'sh'))
    with BrokerServer('127.0.0.1', 0) as broker:
        environment = {'POSTAGE_URL': broker.url, 'NOTES': str(tmp_path / 'notes')}
        running = run_module('postage', run, environment, cwd=tmp_path)
        running.expect('is ready', 30)
        probed = run_module('postage', probe)
        assert probed.wait() == 0, probed.output
        running.stop()
