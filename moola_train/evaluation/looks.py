"""How often a run's test part was looked at: a seal that is broken ten times seals nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

from moola_features.files import replaced_file
from moola_features.times import time_text
from moola_train.errors import RunError

LOOKS = "test_looks.json"


def looks_at(run: str | Path) -> tuple[str, ...]:
    """Times at which the run's test part was evaluated, the earliest first.

    Raises
    ------
    RunError
        A record that cannot be read.
    """
    path = Path(run) / LOOKS
    if not path.exists():
        return ()
    try:
        times = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; mend it, it is not made again") from error
    if not isinstance(times, list) or not all(isinstance(entry, str) for entry in times):
        raise RunError(f"{path} is no list of times; mend it, it is not made again")
    return tuple(times)


def record_look(run: str | Path) -> tuple[str, ...]:
    """Add this moment, and return all of them.

    Written before anything is predicted: a look that ends in an error was a look.

    Raises
    ------
    RunError
        A record that cannot be read.
    OutputError
        A folder that cannot be written.
    """
    times = (*looks_at(run), time_text(time.time_ns() // 10**9 * 10**9))
    with replaced_file(Path(run) / LOOKS) as beside:
        beside.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
    return times
