"""The ``postage`` command, a module per subcommand; its group is in ``main.py``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command, and end with its exit status: 0, 1 where something failed, 2 where it was called wrongly.

    The broker runs without the packages that the other commands need.
    """
    try:
        return _run()
    except KeyboardInterrupt:  # while it was being loaded; then the commands see to that
        sys.stderr.write('Aborted!\n')
        return 1


def _run() -> int:
    if sys.argv[1:2] == ['broker']:
        from postage.broker.__main__ import main as broker

        return broker(sys.argv[2:], 'postage broker')
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f"postage: the command needs {error.name}, which comes with: pip install 'postage[cli]'\n")
        return 1
    from postage.cli.main import postage

    postage(prog_name='postage')
    return 0
