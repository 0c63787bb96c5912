"""``postage stacks``"""

from __future__ import annotations

from typing import Any

import click

from postage.cli.operate import options
from postage.cli.operate.asking import Answer, in_order
from postage.cli.output import print_json
from postage.printable import printable


@click.command('stacks')
@options.address(is_needed=True)
@options.asks('stacks')
def command(answers: list[Answer], as_data: bool) -> None:
    """Show where components are: the stack of each thread, and what each microthread waits for.

    Exit status: 0 if there are some, and all of --expect; 1 if not.
    """
    told = in_order(answers)
    if as_data:
        print_json([answer.value for answer in told])
    else:
        lines = options.rows_of(told, _lines_of)
        for line in (line for each in lines for line in each):
            click.echo(printable(line))


def _lines_of(answer: Answer) -> tuple[str, ...]:
    lines = [answer.who]
    for each in answer.value['threads']:
        lines += [f'  thread {each["thread"]}', *_stack(each)]
    for each in answer.value['microthreads']:
        waits = f' for {each["waits_for"]}' if each['waits_for'] else ''
        lines += [f'  microthread {each["microthread"]}: {each["state"]}{waits}', *_stack(each)]
    return tuple(lines)


def _stack(each: dict[str, Any]) -> list[str]:
    return [f'    {line}' for line in each['stack']]
