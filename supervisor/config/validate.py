"""Checks a YAML document against its types: each value separately, each error with its place.

`schema.py` is the only description of the fields. msgspec checks each value; the text of what is allowed comes from the same
type, so the two always agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from supervisor.config import yaml_reader
from supervisor.config.removed import REMOVED
from supervisor.config.schema import NODE_FILE
from supervisor.config.yaml_reader import (
    NOT_SHOWN,
    Mapping,
    Problem,
    Scalar,
    Sequence,
    YamlNode,
    found,
    is_null,
    like_a_key,
    printable,
    resolved,
)

MAX_PROBLEMS: Final = 100  # of one file

_S = TypeVar("_S", bound=msgspec.Struct)


_BAD: Final[Any] = object()  # in place of a refused value
_NUMBER: Final = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_WHOLE: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")  # fits any bound


def validate(
    cls: type[_S],
    text: str,
    file: str,
    problems: list[Problem],
    notes: list[str],
    check: Callable[[Validator, _S], None] | None = None,
) -> _S | None:
    """A file's text as its struct. With errors it returns None and adds them to `problems`, in file order. Each removed setting
    adds a line to `notes`. `check` looks at all fields together, once each is sound."""
    root, refused = yaml_reader.parse(text, file)
    validator = Validator(file, refused)
    if root is None and not _required(cls):
        root = Mapping(1, 1)
    value = validator.section(cls, Scalar(1, 1, "", True) if root is None else root, "", YamlNode(1, 1))
    if not validator.problems and check is not None and isinstance(value, cls):
        check(validator, value)
    notes.extend(validator.notes)
    if validator.problems:
        ordered = sorted(validator.problems, key=lambda problem: (problem.line, problem.column))
        problems.extend(ordered[:MAX_PROBLEMS])
        if rest := ordered[MAX_PROBLEMS:]:
            problems.append(Problem(file, rest[0].line, rest[0].column, "", f"{len(rest)} more errors", "none"))
        return None
    assert isinstance(value, cls)
    return value


class Validator:
    """Walks a document and its types together. `places`: where the value of each field is."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.notes: list[str] = []
        self.places: dict[str, YamlNode] = {}

    def refuse(self, place: YamlNode, path: str, what: str, allowed: str) -> None:
        """Add an error."""
        self.problems.append(Problem(self.file, place.line, place.column, path, what, allowed))

    def found(self, node: YamlNode, path: str) -> str:
        """A value as an error at this field shows it."""
        no_url = path == "control.url" and isinstance(node, Scalar) and not re.fullmatch(r"[a-z]+://[^?#@]*", node.text)
        section = _SECTION.fullmatch(path) is not None and (path or self.file == NODE_FILE)
        text = isinstance(node, Scalar) and resolved(node.text) == "str"  # no number, which lacks its quotes
        command = text and re.fullmatch(r"tasks\.[^.]*\.argv\b.*|host\.checks\b.*", path)
        return found(node, secret=bool(no_url or section or command or _of_secrets(path)))

    def section(self, cls: type[Any], node: YamlNode, path: str, key: YamlNode) -> Any:
        """A mapping with fixed fields; a missing one is reported at `key`."""
        if not _required(cls) and is_null(node):
            node = Mapping(node.line, node.column)  # all its fields are comments
        if not isinstance(node, Mapping):
            return self._mistyped(node, path, cls)
        fields = {f.name: f for f in msgspec.structs.fields(cls)}
        values: dict[str, Any] = {}
        for name, (name_node, value_node) in self._pairs(node, path).items():
            if name in fields:
                values[name] = self._value(fields[name].type, value_node, join(path, name), name_node)
            elif why := REMOVED.get(join(path, name)):
                place = f"{self.file}:{name_node.line}:{name_node.column}"
                self.notes.append(f"{place}: {join(path, name)} was removed: {why}; delete the line")
            else:
                shown = path if _of_secrets(path) or like_a_key(name) else join(path, name)
                self.refuse(name_node, shown, "an unknown field", _names(fields, name, len(self.problems)))
        for name, f in fields.items():
            if f.required and name not in values:
                self.refuse(key, join(path, name), "nothing", allowed(f.type))
                values[name] = _BAD
        return _BAD if _BAD in values.values() else cls(**values)

    def _value(self, annotation: Any, node: YamlNode, path: str, key: YamlNode) -> Any:
        """A value of any type; _BAD: refused."""
        self.places[path] = node
        inner, _, optional = unwrap(annotation)
        if optional and is_null(node):
            return None
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            return self.section(inner, node, path, key)
        origin = get_origin(inner)
        if origin is dict:
            return self._table(annotation, node, path)
        if origin is list:
            return self._list(annotation, node, path)
        return self._leaf(annotation, inner, node, path)

    def _table(self, annotation: Any, node: YamlNode, path: str) -> Any:
        """A mapping with free names."""
        if is_null(node):
            return {}
        if not isinstance(node, Mapping):
            return self._mistyped(node, path, annotation)
        key_type, value_type = get_args(unwrap(annotation)[0])
        values: dict[str, Any] = {}
        for name, (name_node, value_node) in self._pairs(node, path).items():
            if _sound(name, key_type):
                values[name] = self._value(value_type, value_node, join(path, name), name_node)
            else:
                hide = _of_secrets(path) or like_a_key(name)
                shown = NOT_SHOWN if hide else f"the name {printable(name) or repr(name)}"
                self.refuse(name_node, path, shown, allowed(key_type))
        return _BAD if _BAD in values.values() else values

    def _list(self, annotation: Any, node: YamlNode, path: str) -> Any:
        if not isinstance(node, Sequence):
            return self._mistyped(node, path, annotation)
        (item_type,) = get_args(unwrap(annotation)[0])
        values = [self._value(item_type, item, f"{path}[{n}]", item) for n, item in enumerate(node.items)]
        return _BAD if _BAD in values else values

    def _leaf(self, annotation: Any, inner: Any, node: YamlNode, path: str) -> Any:
        """A scalar, read strictly as the expected type, then checked by msgspec."""
        value = _read_as(inner, node) if isinstance(node, Scalar) else _BAD
        if value is _BAD or not _sound(value, annotation):
            return self._mistyped(node, path, annotation)
        return value

    def _mistyped(self, node: YamlNode, path: str, annotation: Any) -> Any:
        if type(node) is not YamlNode:  # a plain one was refused before
            self.refuse(node, path, self.found(node, path), allowed(annotation) + _hint(annotation, node))
        return _BAD

    def _pairs(self, node: Mapping, path: str) -> dict[str, tuple[YamlNode, YamlNode]]:
        """The fields of a mapping, without those that are no names or occur twice."""
        pairs: dict[str, tuple[YamlNode, YamlNode]] = {}
        for key, value in node.pairs:
            if type(key) is YamlNode:
                continue
            kind = resolved(key.text) if isinstance(key, Scalar) and key.plain else "str"
            if kind == "merge":
                self.refuse(key, path, "the merge key <<", "every value written out")
            elif not isinstance(key, Scalar) or kind != "str":
                what = f"{found(key, secret=_of_secrets(path))} as a name"
                self.refuse(key, path, what, "a text (in quotes where YAML reads it as something else)")
            elif key.text in pairs:
                first = pairs[key.text][0]
                self.refuse(key, join(path, key.text), f"a second time (first on line {first.line})", "once")
            else:
                pairs[key.text] = key, value
        return pairs


# A text in place of such a section may be a key that was written a level too high.
_SECTION: Final = re.compile(r"(control(\.nats)?|tasks(\.[^.]*(\.notice)?)?)?")


def _of_secrets(path: str) -> bool:
    """A field whose values, and names, are secrets, or lead to them."""
    return re.fullmatch(r"control\.token\b.*|tasks\.[^.]*\.env\b.*", path) is not None


def join(path: str, name: str) -> str:
    """The dotted name of a field in its section."""
    name = printable(name) or "''"
    return f"{path}.{name}" if path else name


def _required(cls: type[Any]) -> bool:
    """Whether some field of this section has no default."""
    return any(f.required for f in msgspec.structs.fields(cls))


def unwrap(annotation: Any) -> tuple[Any, list[msgspec.Meta], bool]:
    """(the type itself, its Metas, whether None is allowed)."""
    metas: list[msgspec.Meta] = []
    optional = False
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *more = get_args(annotation)
            metas += more
        elif origin is Union or origin is UnionType:
            annotation, none = get_args(annotation)
            assert none is NoneType, "unreachable: settings hold no unions but with None"
            optional = True
        else:
            return annotation, metas, optional


def _read_as(inner: Any, node: Scalar) -> Any:
    """A scalar in the form of this type, else _BAD."""
    text = node.text
    if inner is bool:
        return {"true": True, "false": False}.get(text, _BAD) if node.plain else _BAD
    if inner is float:
        return float(text) if node.plain and _NUMBER.fullmatch(text) else _BAD
    if inner is int:
        return int(text) if node.plain and _WHOLE.fullmatch(text) else _BAD
    # a text without quotes must be one for every YAML reader
    return text if not node.plain or (resolved(text) == "str" and not _NUMBER.fullmatch(text)) else _BAD


def allowed(annotation: Any) -> str:
    """What a type allows, as a text."""
    inner, metas, optional = unwrap(annotation)
    if optional:
        return f"{allowed(Annotated[(inner, *metas)] if metas else inner)}, or nothing"
    for meta in metas:
        if meta.extra and "allowed" in meta.extra:
            return str(meta.extra["allowed"])
    if inner is bool:
        return "true or false"
    if inner is float or inner is int:
        signs = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        bounds = [f"{sign} {bound:g}" for meta in metas for name, sign in signs if (bound := getattr(meta, name)) is not None]
        return " ".join(["a whole number" if inner is int else "a number", " and ".join(bounds)]).rstrip()
    if inner is str:
        return "a text that is not empty" if any(meta.min_length for meta in metas) else "a text"
    origin = get_origin(inner)
    if origin is Literal:
        return "one of " + ", ".join(get_args(inner))
    if origin is list:
        return "a list, each item " + allowed(get_args(inner)[0])
    if origin is dict:
        return "a mapping, each name " + allowed(get_args(inner)[0])
    return "a section with " + ", ".join(inner.__struct_fields__)


def description(annotation: Any) -> str:
    """Why a field is there."""
    return "".join(meta.description or "" for meta in unwrap(annotation)[1])


def _hint(annotation: Any, node: YamlNode) -> str:
    """How to write the value that was probably meant."""
    if not isinstance(node, Scalar) or not node.plain:
        return ""
    inner = unwrap(annotation)[0]
    kind = resolved(node.text)
    if inner is float or inner is int:
        special = re.fullmatch(r"[-+]?\.?(?:inf|nan)", node.text, re.IGNORECASE)
        odd = kind in ("int", "float") and not _NUMBER.fullmatch(node.text) and not special
        return ", in plain decimal form" if odd else ""
    text_in_quotes = (inner is str or get_origin(inner) is Literal) and kind != "null" and _sound(node.text, annotation)
    return " (in quotes)" if text_in_quotes else ""


def _sound(value: Any, annotation: Any) -> bool:
    """Whether msgspec accepts the value as it is; of a text, also that paths and arguments can contain it."""
    if isinstance(value, str):
        single_line = any(meta.pattern for meta in unwrap(annotation)[1])
        if "\0" in value or (single_line and "\n" in value) or any("\ud800" <= c <= "\udfff" for c in value):
            return False
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    return True


def _names(fields: Iterable[str], unknown: str, problems: int) -> str:
    """The known fields, and the one that was probably meant."""
    names = list(fields)
    listed = ", ".join(names)
    if problems < MAX_PROBLEMS and len(unknown) <= 64:
        from difflib import get_close_matches

        if close := get_close_matches(unknown.lower().replace("-", "_"), names, n=1):
            return f"{listed} (did you mean {close[0]}?)"
    return listed


def allow_empty_sections(document: dict[str, Any]) -> None:
    """In node.yaml a section may be empty: all its fields may be comments."""
    for definition in document["$defs"].values():
        for name, field in definition.get("properties", {}).items():
            if "$ref" in field or "additionalProperties" in field:
                definition["properties"][name] = {"anyOf": [field, {"type": "null"}]}
