"""Text from outside, made fit to be shown."""

from __future__ import annotations

import json

import pytest

from supervisor.linux.console import document
from supervisor.linux.text import escaped, one_line, visible


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("plain äöü 日本", "plain äöü 日本", id="printable text stays"),
        pytest.param("a\r\nb\tc  d ", "a b c d", id="line ends and white space"),
        pytest.param("\x1b[31;1mred\x1b[0m", "red", id="colour"),
        pytest.param("\x9b2Jgone", "gone", id="CSI of one byte"),
        pytest.param("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "a b c", id="title and link"),
        pytest.param("\x1bcreset\x1b", "reset", id="two characters, and a lone escape"),
        pytest.param("a\u202eb\u2028c\ud800d\x00e\xa0f", "a b c d e f", id="unprintable Unicode"),
        pytest.param("", "", id="empty"),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert one_line(text, 40) == line


def test_a_long_text_is_cut_and_says_so() -> None:
    assert one_line("x" * 10, 10) == "x" * 10
    assert one_line("x" * 10_000, 10) == "x" * 9 + "…"


def test_escaped_shows_what_is_there() -> None:
    assert escaped("a\x1b\u202eb", 40) == "a\\x1b\\u202eb"
    assert escaped("\n" * 40, 10) == "\\n\\n\\n\\n\\n"[:9] + "…"


def test_visible_keeps_the_text_and_writes_out_what_a_terminal_obeys() -> None:
    assert visible("äöü 日本 👩\u200d🔬\t\xa0\n\udcff") == "äöü 日本 👩\u200d🔬\t\xa0\n\udcff"
    assert visible("\x1b[2J\r\x9b2J\x7f\x00\u202e\u2028") == "\\x1b[2J\\r\\x9b2J\\x7f\\x00\\u202e\\u2028"


def test_a_document_has_the_whole_text_and_shows_it_only() -> None:
    value = {"a": "\x1b[2J\x9b2J\x7f\u202e\u2028 äöü"}
    text = document(value)
    assert json.loads(text) == value
    assert text.replace("\n", "").isprintable()
