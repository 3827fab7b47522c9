"""The report as one HTML file. It needs no network and runs only its own scripts."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lorabench.bench.records.atomic_writes import write_atomically
from lorabench.estimator.devices.device import Device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.version import __version__
from lorabench.reports import quantities
from lorabench.reports.runs import Run
from lorabench.reports.sections import SECTIONS, Section
from lorabench.reports.sections.failures import outcome_of
from lorabench.reports.subject import subject_of

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

HERE = Path(__file__).parent
STYLES = ("colours", "page", "summary", "charts", "tables", "environments", "planning", "print", "scriptless")
"""Files in ``css/``, in order."""
LIBRARY = "vendor/echarts/echarts.min.js"
FOUNDATION = ("quantities", "store", "tables", "charts", "record")
"""Files in ``js/`` that the sections' scripts import."""
START = ("start",)
"""Files in ``js/`` that run last."""


def render_report(runs: Sequence[Run], models: Sequence[ModelSpec] = (), devices: Sequence[Device] = ()) -> str:
    """Return the page of ``runs``; without runs, a page of estimates.

    Args:
        runs: from `lorabench.reports.runs.read_runs`.
        models: models to estimate on the page, besides those of the runs (`subject_of`).
        devices: GPUs to select first on the page.

    There must be a run or a model.

    Raises:
        UserError: jinja2 is not installed.
    """
    subject = subject_of(runs, models, devices)
    sections = [(section, data) for section in SECTIONS if (data := section.data(subject)) is not None]
    if not runs:
        return render_page(" · ".join(spec.name for spec in models), "Memory and speed, estimated", sections)
    title = " · ".join(dict.fromkeys(run.record.suite for run in runs))
    if all(run.record.rehearsed for run in runs):
        return render_page(title, "Memory, estimated and rehearsed; nothing was measured", sections)
    return render_page(title, "Memory, speed and loss, estimated and measured", sections)


def render_page(title: str, lead: str, sections: Sequence[tuple[Section, dict[str, Any]]]) -> str:
    """Return a page of ``sections``, each with the data of its template, as one file.

    The page's content security policy allows its scripts and its style by hash, and nothing else may run, load or be
    sent. Foreign text is escaped, or inside JSON that cannot be parsed as markup.

    Raises:
        UserError: jinja2 is not installed.
    """
    jinja = _jinja()
    style = _inline("\n".join(_read(f"css/{name}.css") for name in STYLES))
    own = [name for section, _ in sections for name in section.scripts]
    library, module = _inline(_read(LIBRARY)), _inline(_linked(dict.fromkeys([*FOUNDATION, *own, *START])))
    return jinja.get_template("page.html").render(
        title=title,
        lead=lead,
        version=__version__,
        sections=sections,
        style=style,
        library=library,
        module=module,
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {_source(library)} {_source(module)}",
                f"style-src {_source(style)}",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
    )


def write_page(page: str, path: Path) -> int:
    """Write ``page`` to ``path`` atomically, create its folder if needed, and return the size in bytes.

    Raises:
        UserError: ``path`` cannot be written.
    """
    content = page.encode("utf-8", errors="replace")
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot write the report: not a file: name a file with -o")
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot write the report: {error.strerror}: name another file with -o") from error
    return len(content)


def _jinja() -> Environment:
    try:
        import jinja2
    except ImportError as error:
        raise UserError("report needs jinja2, which is not installed: pip install 'lorabench[report]'") from error
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {
        "as_bytes": quantities.format_bytes,
        "as_change": lambda change: "–" if change is None else f"{change:+.4f}".replace("-", "−"),
        "as_loss": quantities.format_loss,
        "as_number": quantities.format_number,
        "as_percent": lambda share: f"{100 * share:g}%",
        "as_seconds": quantities.format_seconds,
        "as_share": quantities.format_share,
        "plural": quantities.plural,
        "json_data": _json_data,
        "outcome": outcome_of,
    }
    return jinja


def _json_data(data: Any) -> Markup:
    """Return ``data`` as JSON for a script element. Only ``<`` could end the element, so it is escaped."""
    from markupsafe import Markup

    return Markup(msgspec.json.encode(data).decode().replace("<", "\\u003c"))  # noqa: S704


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _linked(names: Iterable[str]) -> str:
    """Return the ES modules of ``js/`` as one script: inline modules cannot import each other.

    Each module becomes a function that returns its exports, after the modules that it imports. Import and export
    statements must be at the start of a line.
    """
    linked = []
    for name in names:
        text = _read(f"js/{name}.js")
        exported = re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", text, flags=re.MULTILINE)
        text = re.sub(r'^import (\{[^}]*\}) from "\./(\w+)\.js";', r"const \1 = module_\2;", text, flags=re.MULTILINE)
        text = re.sub(r"^export ", "", text, flags=re.MULTILINE)
        linked.append(
            f"const module_{name} = await (async () => {{\n{text}\nreturn {{ {', '.join(exported)} }};\n}})();"
        )
    return "\n".join(linked)


def _inline(text: str) -> Markup:
    """Return our own script or style, marked as safe for its element."""
    from markupsafe import Markup

    assert not any(end in text.lower() for end in ("</script", "</style", "<!--")), "it would end its own element"
    return Markup(text)  # noqa: S704


def _source(inline: str) -> str:
    """Return the content security policy's source of an inline script or style: its hash."""
    return f"'sha256-{b64encode(sha256(inline.encode()).digest()).decode()}'"
