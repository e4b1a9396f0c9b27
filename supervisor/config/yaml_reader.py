"""A strict YAML reader: one document of mappings, lists and scalars, each node with its place.

It refuses what makes YAML surprising, with line and column: other encodings, anchors and aliases, tags, directives, several
documents, merge keys, deep nesting, large files. It resolves no values: a scalar keeps its text, and whether it was quoted.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from supervisor.linux.small_files import NotPlain, TooLarge, read_plain
from supervisor.linux.text import escaped

MAX_BYTES: Final = 256 * 1024  # a normal file has a few KiB
MAX_DEPTH: Final = 16  # tasks.<type>.env.<name> is four deep
SHOWN: Final = 60  # characters of a value in a message
MAX_PATH: Final = 4096

# Ten times faster with libyaml, and the same events.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# More than YAML forbids: editors do not count these line breaks, and positions must be those of an editor.
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error as one line: file, place (from 1), field, what was found, what is allowed.

    Line 0: the file itself cannot be read; `allowed` then says what to do.
    """

    file: str
    line: int
    column: int
    field: str
    found: str
    allowed: str

    def __str__(self) -> str:
        if not self.line:
            return f"{self.file}: {self.found}; {self.allowed}"
        name = f"{self.field}: " if self.field else ""
        return f"{self.file}:{self.line}:{self.column}: {name}found {self.found}, allowed: {self.allowed}"


class UnreadableFile(Exception):
    """The file cannot be read as text."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(slots=True)
class YamlNode:
    """A value, and where it begins, from 1. A plain YamlNode was refused; it gets no second error."""

    line: int
    column: int


@dataclass(slots=True)
class Scalar(YamlNode):
    """A text as written; `plain`: without quotes."""

    text: str
    plain: bool


@dataclass(slots=True)
class Sequence(YamlNode):
    items: list[YamlNode] = field(default_factory=list)


@dataclass(slots=True)
class Mapping(YamlNode):
    """Keys and values in file order; a key may occur twice."""

    pairs: list[tuple[YamlNode, YamlNode]] = field(default_factory=list)
    key: YamlNode | None = None  # while reading: the key whose value comes next


def printable(text: str, max_chars: int = SHOWN) -> str:
    """The text on one line, without control characters."""
    return escaped(text, max_chars)


def resolved(text: str) -> str:
    """What YAML 1.1 makes of a plain scalar: `null`, `bool`, `int`, `float`, `timestamp`, `merge`, or `str`."""
    for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], ()):
        if pattern.match(text):
            return str(tag).rpartition(":")[2]
    return "str"


def is_null(node: YamlNode) -> bool:
    """Whether the value is YAML's null: nothing, ~, or null."""
    return isinstance(node, Scalar) and node.plain and resolved(node.text) == "null"


NOT_SHOWN: Final = "a text that is not shown here, because it may be a secret"
_KEY: Final = re.compile(r"(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])[^\s/]{12,}")


def like_a_key(text: str) -> bool:
    """Whether a text looks like a key or password: long, letters and digits, no blank and no slash."""
    return _KEY.fullmatch(text) is not None


def found(node: YamlNode, *, secret: bool = False) -> str:
    """A value as an error shows it: as written in the file, quoted if it was quoted. `secret`: it may be one, as may
    what looks like a key in any place."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    if not isinstance(node, Scalar):
        return "something refused"
    if is_null(node):
        return "nothing"
    if node.text and (secret or like_a_key(node.text)):
        return NOT_SHOWN
    if not node.plain:
        return repr(node.text if len(node.text) <= SHOWN else node.text[: SHOWN - 1] + "…")
    return printable(node.text)


# --- from the folder to a text


def read(folder: Path, file: str) -> str | None:
    """The text of a file in a folder; None if it is not there.

    Raises:
        UnreadableFile: it cannot be read, is too large, or is no UTF-8 text.
    """
    raw = _bytes(folder, file)
    return None if raw is None else _decoded(raw, file)


def _bytes(folder: Path, file: str) -> bytes | None:
    def refused(what: str, todo: str) -> UnreadableFile:
        return UnreadableFile(Problem(file, 0, 0, "", f"{what} in {printable(str(folder), MAX_PATH)}", todo))

    try:
        path = os.path.join(folder, file)
        return read_plain(path, MAX_BYTES, follow=True)
    except FileNotFoundError:
        return None
    except NotPlain as other:
        raise refused(f"is {other.kind}", "put a plain file there") from None
    except TooLarge:
        raise refused(f"is larger than {MAX_BYTES // 1024} KiB", "shorten it") from None
    except NotADirectoryError:
        raise refused("cannot be read", "name a folder, not a file, with --config") from None
    except PermissionError as error:
        raise refused(f"cannot be read ({error.strerror})", "give the service's user the right to read it") from None
    except OSError as error:
        raise refused(f"cannot be read ({error.strerror})", "put a plain file there") from None
    except ValueError:  # a NUL character in the folder's name
        raise refused("cannot be read", "name an existing folder with --config") from None


def _decoded(raw: bytes, file: str) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UnreadableFile(Problem(file, 1, 1, "", "UTF-16 text", "UTF-8 text"))
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        what = f"the byte 0x{raw[error.start]:02x}, which is not UTF-8"
        raise UnreadableFile(Problem(file, *_place(before), "", what, "UTF-8 text")) from None
    if bad := _FORBIDDEN.search(text):
        what = f"the control character U+{ord(bad[0]):04X}"
        raise UnreadableFile(Problem(file, *_place(text[: bad.start()]), "", what, "printable text"))
    return text


def _place(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows this text."""
    lines = re.split("\r\n|\r|\n", before)
    return len(lines), len(lines[-1]) + 1


# --- from the text to a tree


def parse(text: str, file: str) -> tuple[YamlNode | None, list[Problem]]:
    """(the root, None for an empty document; the problems). The root is a plain YamlNode when the text is not YAML."""
    reader = _Reader(file)
    try:
        reader.run(yaml.parse(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        reader.problems.append(_syntax(error, text, file))
        reader.root = YamlNode(1, 1)
    return reader.root, reader.problems


_YAML_TAG: Final = "tag:yaml.org,2002:"
_TOO_DEEP: Final = "too many levels of nesting", f"at most {MAX_DEPTH}"


class _Reader:
    """Builds the tree from events, without recursion: deep nesting cannot exhaust the stack."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: YamlNode | None = None
        self.problems: list[Problem] = []
        self._open: list[Sequence | Mapping] = []

    def run(self, events: Iterator[Any]) -> None:
        documents = 0
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                if len(self._open) >= MAX_DEPTH:
                    self._refuse(event, *_TOO_DEEP)
                    self.root = YamlNode(1, 1)
                    return
                self._node(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._open.pop()
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "a second document", "one document")
                    return
                if event.version or event.tags:
                    self._refuse(event, "a % directive", "none")

    def _node(self, event: Any) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"the alias *{printable(event.anchor or '')}", "every value written out")
            self._add(YamlNode(line, column))
            return
        if event.anchor is not None:
            self._refuse(event, f"the anchor &{printable(event.anchor)}", "every value written out")
        node: YamlNode
        if isinstance(event, yaml.ScalarEvent):
            node = Scalar(line, column, event.value, not event.style)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Sequence(line, column)
        else:
            node = Mapping(line, column)
        if event.tag is not None:
            self._refuse(event, f"the tag {printable(event.tag.replace(_YAML_TAG, '!!'))}", "values without tags")
            self._add(YamlNode(line, column))  # the tagged value gets no second error
        else:
            self._add(node)
        if isinstance(node, Sequence | Mapping):
            self._open.append(node)

    def _add(self, node: YamlNode) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif parent.key is None:
            parent.key = node
        else:
            parent.pairs.append((parent.key, node))
            parent.key = None

    def _refuse(self, event: Any, what: str, allowed: str) -> None:
        mark = event.start_mark
        self.problems.append(Problem(self.file, mark.line + 1, mark.column + 1, "", what, allowed))


# Part of the parser's message; our text for what was found and what is allowed; whether the place where the construct began
# helps more than the place of the error.
_SYNTAX_ERRORS: Final = (
    ("exceeded maximum nesting", *_TOO_DEEP, False),
    ("found unexpected end of stream", "a quote that is never closed", "a closing quote", True),
    ("found unexpected document indicator", "a quote that is never closed", "a closing quote", True),
    ("did not find expected ',' or ']'", "a list that is not closed", "a , or ] after each item", True),
    ("did not find expected ',' or '}'", "a mapping that is not closed", "a , or } after each field", True),
    ("mapping values are not allowed", "a ':' where no value can follow", "one 'field: value' a line, equally indented", False),
    ("could not find expected ':'", "a field without ':'", "'field: value' on each line", False),
    ("did not find expected key", "something that is no field of its section", "'field: value', equally indented", False),
    ("did not find expected '-'", "something that is no item of the list", "'- item', equally indented", False),
    ("did not find expected node content", "no value where one must be", "a value", False),
    ("did not find expected <document start>", "something after the end", "one document, equally indented", False),
    ("block sequence entries are not allowed", "a '-' where no list can begin", "a list on lines of its own", False),
    ("directive", "a % directive", "none", False),
    ("alphabetic or numeric character", "an & or * without a name", "such a text in quotes", False),
    ("escape", "an unknown \\ escape in double quotes", "single quotes, or \\\\ for a backslash", False),
)


def _syntax(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """A syntax error in our own text, if we have one for it."""
    problem = str(getattr(error, "problem", None) or "unreadable")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    found, allowed = f"text that is no YAML ({printable(problem)})", "YAML"
    for part, ours, hint, at_start in _SYNTAX_ERRORS:
        if part in problem:
            found, allowed = ours, hint
            mark = (getattr(error, "context_mark", None) or mark) if at_start else mark
            break
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if "cannot start any token" in problem:
        lines = re.split("\r\n|\r|\n", text)
        char = lines[line - 1][column - 1 : column] if line <= len(lines) else ""
        found = "a tab" if char == "\t" else f"the character {char} at the start of a value"
        allowed = "spaces" if char == "\t" else "such a text in quotes"
    return Problem(file, line, column, "", found, allowed)
