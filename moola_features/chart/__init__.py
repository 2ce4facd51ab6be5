"""Pictures of a store: a page to move about in, and an image of the same stretch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moola_features.errors import ConfigError, MoolaError
from moola_features.files import replaced_file
from moola_features.remote.objects import require_local
from moola_features.store.layout import require_outside

if TYPE_CHECKING:
    from moola_features.store import Store
    from moola_features.times import TimeLike

__all__ = ["write_chart"]


def write_chart(
    store: Store,
    path: str | Path,
    *,
    at: TimeLike | None = None,
    bars: int = 400,
    columns: Sequence[str] | None = None,
) -> list[Path]:
    """Draw a stretch of a store: candles, confirmed swings, and chosen columns below.

    A swing is marked at its extreme; the bar that confirmed it, joined to it by a dotted line,
    is where it became known. Swings are those of the true state: every segment is followed from
    its first bar, and a swing that only later bars confirm is not drawn. Bars that are not valid
    are shaded, and bars stand side by side, so that gaps take no room. A store of the family
    ``returns`` has no swings.

    Parameters
    ----------
    store
        An open store.
    path
        ``NAME.html`` for a page that needs no network, and ``NAME.png`` beside it;
        ``NAME.png`` for the image alone. Files that are there are replaced.
    at
        A time in the middle of the stretch: ns, ISO text, ``datetime``; naive is UTC. None for
        the store's last bars.
    bars
        Bars to draw, 10 to 20,000. The page opens with 400 of them in view.
    columns
        Names of the columns to draw; None for four that show swings and expansion, or three of
        family ``returns``.

    Returns
    -------
    list of Path
        The files written, that of ``path`` first.

    Raises
    ------
    ConfigError
        Another suffix, a time outside the store, an unknown column, ``bars`` out of bounds.
    StoreError
        A store that was opened at an address.
    OutputError
        A file that cannot be written; no half of one is left behind.
    MoolaError
        A package that is not installed.

    Examples
    --------
    >>> import moola_features as mf
    >>> from moola_features.chart import write_chart
    >>> store = mf.open_store("nq.zarr")  # doctest: +SKIP
    >>> write_chart(store, "open.html", at="2024-03-05 14:30", bars=2_000)  # doctest: +SKIP
    [PosixPath('open.html'), PosixPath('open.png')]
    """
    require_local(store, "show")
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (".html", ".png"):
        raise ConfigError(f"path is {str(path)!r}; give a name that ends in .html or .png")
    require_outside(target)
    with _needed_packages():
        from moola_features.chart.image import draw_image
        from moola_features.chart.scene import make_scene

        if suffix == ".html":
            from moola_features.chart.page import draw_page
    scene = make_scene(store, at, bars, columns)
    if suffix == ".png":
        contents = {target: draw_image(scene)}
    else:
        page = draw_page(scene).encode()
        contents = {target: page, target.with_suffix(".png"): draw_image(scene)}
    with contextlib.ExitStack() as stack:  # both are complete before either takes its place
        for file, content in contents.items():
            stack.enter_context(replaced_file(file)).write_bytes(content)
    return list(contents)


@contextlib.contextmanager
def _needed_packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("matplotlib", "plotly"):
            raise
        raise MoolaError(
            f"charts need {error.name}, which is not installed; pip install 'moola[charts]'"
        ) from error
