"""Topic patterns and headers, compared with slow and obvious rules."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postage.broker.exchanges import headers_match, topic_matches, words_of

words = st.lists(st.sampled_from(['a', 'b', '']), max_size=6)
patterns = st.lists(st.sampled_from(['a', 'b', '', '*', '#']), max_size=6)


def obviously_matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == '#':
        return any(obviously_matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ('*', words[0]) and obviously_matches(pattern[1:], words[1:])


@given(patterns, words)
def test_a_pattern_matches_what_the_definition_says(pattern: list[str], words: list[str]) -> None:
    assert topic_matches(pattern, words) == obviously_matches(pattern, words)


def test_many_hashes_do_not_take_exponential_time() -> None:
    started = time.perf_counter()
    assert not topic_matches(['#', 'a'] * 20 + ['b'], ['a'] * 100)
    assert time.perf_counter() - started < 1


def test_an_empty_key_has_no_words() -> None:
    assert words_of('') == []
    assert words_of('.') == ['', '']


@pytest.mark.parametrize(
    ('arguments', 'headers', 'matches'),
    [
        ({'a': 1}, {'a': 1, 'b': 2}, True),
        ({'a': 1}, {'a': True}, False),
        ({'a': 1}, {'a': '1'}, False),
        ({'a': None}, {'a': 'anything'}, True),
        ({'a': None}, {}, False),
        ({'x-match': 'any', 'a': 1, 'b': 2}, {'b': 2}, True),
        ({'x-match': 'any'}, {'a': 1}, False),
        ({'x-match': 'all', 'x-a': 1}, {}, True),
        ({'x-match': 'all-with-x', 'x-a': 1}, {}, False),
        ({'x-match': 'any-with-x', 'x-a': 1, 'b': 2}, {'x-a': 1}, True),
    ],
)
def test_headers_match_as_the_rule_says(
    arguments: dict[str, object], headers: dict[str, object], matches: bool
) -> None:
    assert headers_match(arguments, headers) is matches
