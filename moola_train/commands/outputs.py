"""Where a command may write: under the right suffix, and over nothing that it reads."""

from __future__ import annotations

import os
from pathlib import Path

from moola_features.files import require_folder
from moola_train.errors import ConfigError


def require_output(
    output: Path, suffixes: tuple[str, ...], *, called: str = "output", **inputs: Path | None
) -> None:
    """Refuse an output before anything is read or computed for it.

    Parameters
    ----------
    output
        The file to write.
    suffixes
        Of which it must have one; messages name the first.
    called
        What messages call the file.
    inputs
        What the command reads, by the names that a user knows; None for what was left out.

    Raises
    ------
    ConfigError
        Another suffix, an input itself, by whatever name or link, or a file inside a store.
    OutputError
        A folder that is missing.
    """
    if output.suffix.lower() not in suffixes:
        raise ConfigError(f"{called} is {str(output)!r}; give a name that ends in {suffixes[0]}")
    place = Path(os.path.realpath(output))
    for name, path in inputs.items():
        if path is None:
            continue
        if place == Path(os.path.realpath(path)) or _are_one_file(place, path):
            raise ConfigError(
                f"{called} is {str(output)!r}, which is read as the {name}; choose another name"
            )
        if any(_are_one_file(folder, path) for folder in place.parents):
            raise ConfigError(
                f"{called} is {str(output)!r}, inside the {name} {path}; choose another folder"
            )
    require_folder(place.parent, output)


def _are_one_file(first: Path, second: Path) -> bool:
    # A hard link has another name and is the same file.
    return first.exists() and second.exists() and first.samefile(second)
