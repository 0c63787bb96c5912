"""Every Python snippet of the page on microthreads runs, and prints what its comments say."""

from __future__ import annotations

import xml.etree.ElementTree
from collections.abc import Callable

import docutils.nodes

from support.brokers import Broker
from support.pages import DOCS, assert_prints_what_it_says, blocks, parse
from support.programs import Program

PAGE = DOCS / 'microthreads.rst'


def test_the_page_is_one_program_that_prints_what_it_says(broker: Broker, run_program: Callable[..., Program]) -> None:
    assert_prints_what_it_says(blocks(PAGE, 'python'), broker, run_program)


def test_the_pictures_are_there_and_are_drawings() -> None:
    pictures = [DOCS / image['uri'] for image in parse(PAGE).findall(docutils.nodes.image)]
    assert pictures
    for picture in pictures:
        root = xml.etree.ElementTree.parse(picture).getroot()
        assert root.tag == '{http://www.w3.org/2000/svg}svg'
