"""YAML reader that records lines, reads ``1e-3`` as a number, and accepts plain values only."""

import re
from typing import Any

import yaml
from pydantic import JsonValue

from autocompress.errors import SpecError

# A search space is a page of text; larger input is a mistake or an attack on the parser.
MAX_BYTES = 1_000_000
#: Path of a key or an item in a document, ``("student", "cnn", 0)``.
KeyPath = tuple[str | int, ...]
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """Safe loader without aliases, which can make a small text expand without bound, and with ``1e-3`` as a float."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            parser: Any = self  # PyYAML's stubs leave `peek_event` untyped.
            mark = parser.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed here", mark)
        return super().compose_node(parent, index)


# YAML 1.1 reads `1e-3` as text and `2024-01-01` as a date; the first is meant as a number, and the second as text.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":float", ":timestamp"))]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?|\.(inf|Inf|INF|nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> tuple[JsonValue, dict[KeyPath, int]]:
    r"""Return the document, and the line (from 1) of every key and item by its path.

    Example:
        >>> parse_yaml("a:\n  b: 1e-3", "x.yaml")
        ({'a': {'b': 0.001}}, {('a',): 1, ('a', 'b'): 2})

    Raises:
        SpecError: The text is not one YAML document of plain values, is too large, or repeats a key.
    """
    if len(text) > MAX_BYTES:
        raise SpecError(f"{source}: larger than {MAX_BYTES} bytes; a search space is a page of text")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        value = None if node is None else _construct_value(loader, node, (), lines, source)
    except yaml.MarkedYAMLError as reason:
        line = reason.problem_mark.line + 1 if reason.problem_mark else 1
        raise SpecError(f"{source}:{line}: {reason.problem}") from None
    except (yaml.YAMLError, RecursionError) as reason:
        raise SpecError(f"{source}: not YAML text ({str(reason).splitlines()[0]})") from None
    return value, lines


def _construct_value(
    loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str
) -> JsonValue:
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        raise SpecError(f"{source}:{node.start_mark.line + 1}: the tag {node.tag} is not allowed here")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, JsonValue] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str | int | float | bool | None):
                raise SpecError(f"{source}:{line}: a key must be plain text")
            if key in mapping:
                raise SpecError(f"{source}:{line}: '{key}' is given twice; keep one of them")
            lines[(*path, str(key))] = line
            mapping[str(key)] = _construct_value(loader, value_node, (*path, str(key)), lines, source)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        items: list[JsonValue] = []
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            items.append(_construct_value(loader, item, (*path, index), lines, source))
        return items
    value: JsonValue = loader.construct_object(node, deep=True)
    if not isinstance(value, bool | int | float | str | None):
        raise SpecError(f"{source}:{node.start_mark.line + 1}: {type(value).__name__} is not a plain value")
    return value
