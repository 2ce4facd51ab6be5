"""The command line of the training layer."""

from __future__ import annotations

import click

from moola_features import __version__
from moola_features.command import CONTEXT, run
from moola_train.allocator import keep_freed
from moola_train.commands.evaluate import evaluate
from moola_train.commands.fit import fit
from moola_train.commands.inspect import inspect
from moola_train.commands.label import label
from moola_train.commands.models import models
from moola_train.commands.pretrain import pretrain
from moola_train.commands.review import review
from moola_train.commands.split import split


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="moola-train")
def cli() -> None:
    """Train small recurrent models on the windows of a feature store."""


for _command in (models, label, inspect, review, split, pretrain, fit, evaluate):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    keep_freed()
    run(cli, "moola-train", "interrupted; the last checkpoint stands")


if __name__ == "__main__":
    main()
