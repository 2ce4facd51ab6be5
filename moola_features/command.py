"""What moola's command lines have in common: -v anywhere, --json, one line for a mistake."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import click

from moola_features.errors import ConfigError, MoolaError

_VERY_VERBOSE = 2
_STATE = {"verbosity": 0}
_SAID = {"interrupted": ""}

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def command(function: Callable[..., None]) -> click.Command:
    """Make a command, which takes -v wherever it is written."""
    return click.command()(verbose_option(function))


def verbose_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add -v, to a command or to the group of them."""
    return click.option(
        "-v", "--verbose", count=True, expose_value=False, callback=_remember_verbosity,
        help="Twice, -vv, to show the traceback of an error.",
    )(function)  # fmt: skip


def command_of(group: click.Group) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command and adds it to the group."""

    def add(function: Callable[..., None]) -> click.Command:
        made = command(function)
        group.add_command(made)
        return made

    return add


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def when_interrupted(text: str) -> None:
    """Let a command say something else after Ctrl-C or SIGTERM than its program does."""
    _SAID["interrupted"] = text


def run(group: click.Group, name: str, interrupted: str) -> NoReturn:
    """Run a command line and exit: 0 done, 1 failed, 2 wrong usage.

    Parameters
    ----------
    group
        The commands.
    name
        What the program is called.
    interrupted
        What to say after Ctrl-C or SIGTERM, unless :func:`when_interrupted` tells another.
    """
    _STATE["verbosity"] = 0
    when_interrupted(interrupted)
    # A terminated program tidies up like an interrupted one.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = group.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(_SAID["interrupted"], err=True)
        code = 1
    except BrokenPipeError:
        code = 1
    except (MoolaError, OSError) as error:
        click.echo(f"{name}: {error}", err=True)
        if _STATE["verbosity"] >= _VERY_VERBOSE:
            traceback.print_exc()
        code = 2 if isinstance(error, ConfigError) else 1
    sys.exit(code)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Not by way of SIGINT, which a program that a script starts in the background ignores.
    raise KeyboardInterrupt


def _remember_verbosity(_context: click.Context, _option: click.Parameter, value: int) -> None:
    _STATE["verbosity"] = max(_STATE["verbosity"], value)
