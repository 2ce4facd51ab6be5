"""An evaluation as a page that needs nothing else: no script, no network."""

from __future__ import annotations

import html
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from moola_features import __version__
from moola_features.files import replaced_file, require_folder
from moola_train.errors import ConfigError
from moola_train.evaluation import sections
from moola_train.evaluation.evaluate import Evaluation

_SECTIONS: tuple[Callable[[Evaluation], str], ...] = (
    sections.overview,
    sections.errors,
    sections.comparison,
    sections.slices,
    sections.control,
    sections.calibration,
    sections.abstaining,
    sections.threshold,
    sections.table,
)


def _require_page_path(path: str | Path) -> None:
    """Refuse a place where no page can stand, before anything is computed for it.

    Raises
    ------
    ConfigError
        Another suffix than ``.html``.
    OutputError
        A folder that is missing.
    """
    if Path(path).suffix.lower() != ".html":
        raise ConfigError(f"output is {str(path)!r}; give a name that ends in .html")
    require_folder(Path(path).parent, Path(path))


def write_page(found: Evaluation, path: str | Path) -> None:
    """Write an evaluation as a page, whole or not at all.

    Raises
    ------
    ConfigError
        Another suffix than ``.html``.
    OutputError
        A file that cannot be written.
    """
    _require_page_path(path)
    with replaced_file(path) as beside:
        beside.write_text(draw_page(found), encoding="utf-8")


def draw_page(found: Evaluation) -> str:
    """Return the HTML text of the page."""
    parts = {
        "title": html.escape(f"{Path(found.run).name}: {found.part} part"),
        "style": _asset("page.css"),
        "facts": _facts(found),
        "meaning": html.escape(found.meaning),
        "caution": "".join(
            f'<p class="caution">{html.escape(text)}</p>' for text in found.cautions
        ),
        "sections": "\n".join(draw(found) for draw in _SECTIONS),
        "footer": html.escape(
            f"moola {__version__} · intervals are 95 %, by percentiles of {found.num_draws:,} "
            f"draws of {found.num_blocks:,} days or bases; an interval of ECE lies high, since "
            "resampling adds noise and noise adds to it"
        ),
    }
    pieces = _asset("page.html").split("%%")
    # Every second piece is the name of a part; replacing in turn would look into the parts.
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces)


def _facts(found: Evaluation) -> str:
    facts = {
        "run": found.run,
        "preset": found.preset,
        "part": f"{found.part}, fold {found.fold}",
        "windows": f"{found.num_windows:,} in {found.num_blocks:,} days or bases",
        "classes": ", ".join(found.classes),
    }
    return "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in facts.items()
    )


def _asset(name: str) -> str:
    return (files("moola_train.evaluation") / name).read_text(encoding="utf-8")
