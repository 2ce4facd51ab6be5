"""List the presets."""

from __future__ import annotations

from moola_features.command import command, json_option
from moola_features.terminal import count, print_json, print_table


@command
@json_option
def models(as_json: bool) -> None:
    """List the presets with their parameters and output shapes."""
    import dataclasses

    from moola_train.models import describe

    found = describe()
    if as_json:
        print_json([dataclasses.asdict(description) for description in found])
        return
    rows = [
        (
            description.name,
            count(description.num_parameters),
            str(description.num_features),
            ", ".join(
                f"{head} [{', '.join(map(str, shape))}]"
                for head, shape in description.outputs.items()
            ),
            description.what,
        )
        for description in found
    ]
    print_table(("preset", "parameters", "F", "outputs", "what"), rows, numbers=(1, 2))
