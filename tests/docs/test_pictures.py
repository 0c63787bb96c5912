"""The pictures of terminals are there, need nothing from the network, and say of no machine whose it was."""

from __future__ import annotations

import re
import xml.etree.ElementTree
from pathlib import Path

import pytest

from support.pages import DOCS, ROOT

every_picture = pytest.mark.parametrize('picture', sorted((DOCS / 'images').glob('*.svg')), ids=lambda path: path.stem)
NAMESPACE = 'http://www.w3.org/2000/svg'


@every_picture
def test_it_needs_nothing_from_elsewhere(picture: Path) -> None:
    text = picture.read_text(encoding='utf-8')
    assert xml.etree.ElementTree.fromstring(text).tag == f'{{{NAMESPACE}}}svg'
    assert set(re.findall(r'https?://[^\s"\')<]+', text)) == {NAMESPACE}
    assert all(target.startswith('#') for target in re.findall(r'url\(["\']?([^)]*)', text))
    assert '@font-face' not in text
    assert '@import' not in text


@every_picture
def test_it_names_no_machine(picture: Path) -> None:
    shown = ''.join(xml.etree.ElementTree.parse(picture).getroot().itertext())
    assert re.findall(r'/(?:home|root|tmp|usr|opt|var|Users)/', shown) == []
    assert str(ROOT) not in shown
    assert set(re.findall(r"(?:'(?:host|user)':\s'|\w@)([\w.-]+)", shown)) <= {'ada', '127.0.0.1'}


@pytest.mark.parametrize(
    ('name', 'texts'),
    [
        ('demo', ['make demo', 'A test message', 'a message was sent and received']),
        ('top', ['postage top', '3 components, by name', 'notifier', 'orders', 'pricing', 'ada']),
    ],
)
def test_it_shows_what_the_terminal_shows(name: str, texts: list[str]) -> None:
    shown = ''.join(xml.etree.ElementTree.parse(DOCS / 'images' / f'{name}.svg').getroot().itertext())
    shown = shown.replace('\xa0', ' ')
    assert [text for text in texts if text not in shown] == []
