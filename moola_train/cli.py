"""The command line of the training layer."""

from __future__ import annotations

from typing import Any

import click

from moola_features import __version__
from moola_features.command import CONTEXT, run, verbose_option
from moola_train.allocator import keep_freed
from moola_train.commands.evaluate import evaluate
from moola_train.commands.fit import fit
from moola_train.commands.inspect import inspect
from moola_train.commands.label import label
from moola_train.commands.models import models
from moola_train.commands.pretrain import pretrain
from moola_train.commands.review import review
from moola_train.commands.split import split

_INTERRUPTED = "interrupted"
# Only what trains has checkpoints; others write a file whole or not at all, or none.
_LEFT_BEHIND = {
    "fit": "the last checkpoint stands",
    "pretrain": "the last checkpoint stands",
    "review": "every answer is on disk",
    "label": "nothing is left half-written",
    "split": "nothing is left half-written",
    "evaluate": "nothing is left half-written",
}


class _Interrupted(click.ClickException):
    """Ctrl-C or SIGTERM during a command, and what that leaves behind."""

    def show(self, file: Any = None) -> None:
        """Say so in one line."""
        click.echo(self.message, file=file, err=True)


class _Commands(click.Group):
    """Commands that differ in what they leave behind when they are interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort) as error:
            left = _LEFT_BEHIND.get(ctx.invoked_subcommand or "")
            text = f"{_INTERRUPTED}; {left}" if left else _INTERRUPTED
            raise _Interrupted(text) from error


@click.group(cls=_Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="moola-train")
@verbose_option
def cli() -> None:
    """Train small recurrent models on the windows of a feature store."""


for _command in (models, label, inspect, review, split, pretrain, fit, evaluate):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    keep_freed()
    run(cli, "moola-train", _INTERRUPTED)


if __name__ == "__main__":
    main()
