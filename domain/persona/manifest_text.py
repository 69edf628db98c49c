"""Reading a manifest's text: JSON strictly, or the part of YAML that means the same to every reader.

YAML here has no anchors, aliases, tags or merges, a name stands once in a mapping, and what is not plainly a whole
number, true, false or null is text: `no` is a word, 1.10 is a version, 2026-01-31 is a date as written.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from domain.canonical import read_json
from domain.errors import InvalidError, ManifestInvalidError
from domain.persona.manifest_faults import fault, invalid, pointer

SOURCE_BYTES_MAX = 65_536
DEPTH_MAX = 16
VALUES_MAX = 10_000

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,15})\Z", re.ASCII)
_PLAIN: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


def read_document(data: bytes, *, json_only: bool = False) -> tuple[Any, dict[str, int]]:
    """Read JSON or YAML; give the value, and for YAML the line of each path, counted from 1.

    A text that begins with a brace is JSON.
    Errors: manifest_invalid.
    """
    if len(data) > SOURCE_BYTES_MAX:
        raise _refused(f"a manifest's text holds {SOURCE_BYTES_MAX:,} bytes at most", None, len(data))
    if not json_only and not data.lstrip(b" \t\r\n").startswith(b"{"):
        return read_yaml(data)
    try:
        value = read_json(data)
    except InvalidError as error:
        raise _refused(error.message.replace("the body", "the text"), None) from error
    _check_depth(value)
    return value, {}


def read_yaml(data: bytes) -> tuple[Any, dict[str, int]]:
    """Read a YAML text; give its value, and the line of each path, counted from 1.

    Cost:   3 ms for a usual manifest; .2 s for the worst text that is not too large.
    Errors: manifest_invalid.
    Source: YAML 1.2.2, section 10.2 (the JSON schema), without anchors and tags.
    """
    try:
        node = _Reader(data.decode()).get_single_node()
    except UnicodeDecodeError as error:
        raise _refused("the text is not UTF-8", None) from error
    # The last two are a character beyond the last one, written by its number.
    except (yaml.YAMLError, OverflowError, ValueError) as error:
        raise _refused(*_told(error)) from error
    if node is None:
        raise _refused("the text is empty", None)
    lines: dict[str, int] = {}
    return _value(node, "", lines), lines


class _Reader(yaml.SafeLoader):
    """PyYAML's reader, stopped at the first thing that readers understand in different ways."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refused("anchors and aliases are not read here: write it out", _line(event))
        if event.tag is not None:
            raise _refused(f"tags such as {event.tag} are not read here", _line(event), event.tag)
        if self._depth >= DEPTH_MAX:
            raise _refused(f"it is nested more than {DEPTH_MAX} levels deep", _line(event))
        self._count += 1
        if self._count > VALUES_MAX:
            raise _refused(f"it holds more than {VALUES_MAX:,} names and values", _line(event))
        self._depth += 1
        composed: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return composed


def _value(node: Node, path: str, lines: dict[str, int]) -> Any:
    lines[path] = _line(node)
    if isinstance(node, MappingNode):
        return _members(node, path, lines)
    if isinstance(node, SequenceNode):
        return [_value(inner, f"{path}/{index}", lines) for index, inner in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    text = _text(node, path)
    if node.style is not None:
        return text
    return int(text) if _WHOLE.match(text) else _PLAIN.get(text, text)


def _members(node: MappingNode, path: str, lines: dict[str, int]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, inner in node.value:
        if not isinstance(key, ScalarNode):
            raise _refused("a name is plain text", _line(key), path=path)
        name = _text(key, path)
        place = path + pointer([name])
        if name in members:
            raise _refused(f"the name {name!r} stands here twice", _line(key), name, path=place)
        members[name] = _value(inner, place, lines)
    return members


def _text(node: ScalarNode, path: str) -> str:
    text: str = node.value
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise _refused("half of a character stands alone", _line(node), path=path)
    return text


def _line(marked: Any) -> int:
    line: int = marked.start_mark.line
    return line + 1


def _told(error: Any) -> tuple[str, int | None]:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"the text is not YAML{where}: {said}", mark.line + 1 if mark else None


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    if level:
        _too_deep()


def _too_deep() -> NoReturn:
    raise _refused(f"it is nested more than {DEPTH_MAX} levels deep", None)


def _refused(why: str, line: int | None, got: Any = None, path: str = "") -> ManifestInvalidError:
    return invalid([fault(path, why, got, line)])
