"""Parts of the pages that are made when the documentation is built, so that they cannot fall behind the code.

A page names such a part in an HTML comment on a line of its own, ``<!-- generated: methods student -->``; readers of
the bare Markdown see nothing there, and the built page has the tables. Each part is a function to Markdown below.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"^<!-- generated: (\w+)((?: \w+)*) -->$", flags=re.MULTILINE)
KINDS = {"logit": "*On logits.*", "feature": "*On features.*"}
MEASUREMENTS = ROOT / "reports" / "benchmarks"


def methods(section: str) -> str:
    """Return every method of a section of a search space with its knobs."""
    from autocompress.engine.space import SECTIONS

    registry = SECTIONS[section]
    parts = []
    for name in registry:
        method = registry.get(name)
        knobs = method.config.knobs().values()
        rows = [[_code(knob.name), _range(knob.domain), _code(knob.default), _cell(knob.doc)] for knob in knobs]
        table = (
            _table(["hyperparameter", "range", "default", "meaning"], rows) if rows else "It has no hyperparameters."
        )
        kind = KINDS.get(getattr(method, "kind", ""), "")
        parts += [f"### {name}", " ".join(filter(None, [kind, _prose(method.__doc__)])), table]
    return "\n\n".join(parts)


def objectives(kind: str) -> str:
    """Return every objective of a kind, ``score`` or ``cost``."""
    from autocompress.core.registry import OBJECTIVES

    found = [OBJECTIVES.get(name) for name in OBJECTIVES if OBJECTIVES.get(name).kind == kind]
    rows = [
        [_code(each.name), "more" if each.direction == "maximize" else "less", each.unit, each.doc] for each in found
    ]
    return _table(["name", "better is", "unit", "what it is"], rows)


def modes() -> str:
    """Return every mode of a search."""
    from autocompress.engine.space import MODES

    return _table(["mode", "meaning"], [[_code(name), mode.summary] for name, mode in MODES.items()])


def tasks() -> str:
    """Return every task, with what its constructor takes in a spec."""
    from autocompress.core.registry import TASKS

    rows = []
    for name in TASKS:
        task = TASKS.get(name)
        heads = ", ".join(f"{head} ({classes})" for head, classes in getattr(task, "heads", {}).items())
        rows.append([_code(name), _first_line(task), heads or "from the data"])
    return _table(["task", "what it is", "heads (classes)"], rows)


def task_options() -> str:
    """Return every task with the options that a spec may give it."""
    from autocompress.core.registry import TASKS

    parts = []
    for name in TASKS:
        task = TASKS.get(name)
        told = _listed(task.__doc__, "Args")
        options = [each for each in inspect.signature(task).parameters.values() if each.name in told]
        rows = [[_code(each.name), _default(each.default), _cell(told[each.name])] for each in options]
        parts += [f"## {name}", _prose(task.__doc__)]
        parts += [_table(["option", "default", "meaning"], rows)] if rows else []
    return "\n\n".join(parts)


def promotion() -> str:
    """Return every rule that says which trials continue after a rung."""
    from autocompress.core.registry import PROMOTION_RULES

    rows = [[_code(name), _first_line(PROMOTION_RULES.get(name))] for name in PROMOTION_RULES]
    return _table(["`search.promotion`", "trials that continue"], rows)


def spec() -> str:
    """Return every key of the sections of a spec that are no search space, with its default."""
    from autocompress.engine.spec import Spec, TransferSection

    sections = ("splits", "search", "teacher", "pick")
    models: dict[str, Any] = {name: Spec.model_fields[name].annotation for name in sections}
    models["distill.transfer"] = TransferSection
    rows = []
    for section, model in models.items():
        told = _listed(model.__doc__, "Attributes")
        for key, field in model.model_fields.items():
            name = f"{section}.{field.alias or key}"
            default = "" if field.is_required() else _default(field.default)
            rows.append([_code(name), default, _cell(told.get(key, ""))])
    return _table(["key", "default", "meaning"], rows)


def commands() -> str:
    """Return every verb of the command line with its arguments, options and an example."""
    import typer

    from autocompress.cli.app import app

    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"autocompress {name}")
        records = [param.get_help_record(context) for param in command.params]
        usage = " ".join(["autocompress", name, *command.collect_usage_pieces(context)])
        example = (command.epilog or "").removeprefix("Example: ")
        parts += [f"## {name}", command.help, _fence("text", usage)]
        parts.append(_table(["", ""], [[_code(what), _cell(told)] for what, told in filter(None, records)]))
        parts += ["For example", _fence("sh", example)] if example else []
    return "\n\n".join(parts)


def errors() -> str:
    """Return the tree of exceptions with their exit codes, and the reference of each."""
    from autocompress import errors

    tree = _fence("text", (errors.__doc__ or "").partition("\n\n")[2].strip())
    names = [name for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, Exception)]
    return f"{tree}\n\n" + _fence(
        "{eval-rst}", "\n".join(f".. autoexception:: autocompress.errors.{name}" for name in names)
    )


def measurements() -> str:
    """Return what the benchmarks wrote, one section a file, headings one step down."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(MEASUREMENTS.glob("*.md"))]
    return "\n\n".join(re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE).strip() for text in texts)


def layers() -> str:
    """Return the diagram of the packages by their levels, as raw HTML."""
    from diagram import draw_layers

    return draw_layers()


def gallery() -> str:
    """Return the sample runs with the pictures of their fronts."""
    from gallery import describe_samples

    return describe_samples()


def comparisons() -> str:
    """Return the charts of the benchmarks that compare autocompress with other ways."""
    from charts import describe_comparisons

    return describe_comparisons()


def page(name: str) -> str:
    """Return a page's name for a table of contents, or nothing where there is no such page."""
    return name if (ROOT / "docs" / f"{name}.md").is_file() else ""


PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part
    for part in (
        methods,
        objectives,
        modes,
        tasks,
        task_options,
        promotion,
        spec,
        commands,
        errors,
        measurements,
        layers,
        gallery,
        comparisons,
        page,
    )
}


def filled(text: str) -> str:
    """Return a page with every part that it names in the part's place.

    Raises:
        KeyError: It names a part that does not exist.
    """
    return PLACE.sub(lambda found: PARTS[found[1]](*found[2].split()), text)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fence(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _code(value: object) -> str:
    text = str(value).replace("|", "\\|")
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    # Brackets would begin a link, bars a column.
    return re.sub(r"([\[\]|<>])", r"\\\1", text)


def _range(domain: object) -> str:
    from autocompress.core.knobs import Choice

    return ", ".join(map(_code, domain.options)) if isinstance(domain, Choice) else str(domain)


def _prose(doc: str | None) -> str:
    """Return the prose of a docstring as Markdown: what stands before its first section such as ``Example:``."""
    return _plain("\n\n".join(_paragraphs(doc)))


def _first_line(described: object) -> str:
    return _cell(_prose((described.__doc__ or "").strip().partition("\n")[0]))


def _plain(text: str) -> str:
    """Return the markup of a docstring as Markdown."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def _paragraphs(doc: str | None) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", (doc or "").strip()):
        lines = [line.strip() for line in paragraph.splitlines()]
        if re.fullmatch(r"[A-Z][a-z]+:", lines[0]):
            return
        yield " ".join(lines)


def _listed(doc: str | None, section: str) -> dict[str, str]:
    """Return what a section of a docstring, such as ``Args``, says of each name."""
    listed = inspect.cleandoc(doc or "").partition(f"{section}:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed, flags=re.MULTILINE)
    return {name: _plain(" ".join(text.split())) for name, text in found}


def _default(value: object) -> str:
    return "" if value is None else _code(value)


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx fill each page as it is read."""

    def fill(_app: Any, _page: str, source: list[str]) -> None:
        source[0] = filled(source[0])

    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
