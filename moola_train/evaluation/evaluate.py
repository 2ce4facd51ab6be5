"""Judge a run on a part of its split: everything that a report says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moola_features.store import Store
from moola_train.errors import ConfigError, RunError
from moola_train.evaluation.abstaining import Abstaining, abstaining_of
from moola_train.evaluation.bootstrap import MIN_BLOCKS, NUM_DRAWS, SEED, Draws, blocks_of
from moola_train.evaluation.calibration import Calibration, calibrate
from moola_train.evaluation.comparison import Comparison, compare, pair
from moola_train.evaluation.looks import looks_at, record_look
from moola_train.evaluation.names import MEANING, PARTS
from moola_train.evaluation.predicted import PartPredictions, predict_part
from moola_train.evaluation.scores import Score, scores_of
from moola_train.evaluation.slices import Slice, slices_of, tercile_edges, volatility_of
from moola_train.evaluation.subject import Subject, open_subject
from moola_train.evaluation.threshold import ThresholdChoice
from moola_train.inference import Predictions
from moola_train.metrics import are_known
from moola_train.rule_floor import RuleFloor, rule_spans
from moola_train.targets import Float64, Int64, Targets, are_labelled

CONTROL = ("accuracy", "f1_macro", "pr_auc", "span_f1", "hit_at_3", "start_mae", "end_mae")
MOST_LAG = 20  # bars; longer ones are counted with these
MOST_PRICED = 50_000  # windows of the training part that rule and terciles are fitted to

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a run is worth on windows that it was not trained on.

    Attributes
    ----------
    run, preset, part, fold
        What was judged on what.
    meaning
        What the scores measure.
    purged
        Whether bars tell the parts apart; windows that hold their own have no place in time.
    num_windows, num_blocks, num_draws
        Windows of the part, the days or bases that they are drawn by, and the draws.
    classes
        Names of the types.
    looks
        When the run's test part was evaluated, this time included.
    scores
        Every metric beside its floors.
    slices
        The same by class and by volatility.
    calibration, threshold, abstaining
        None where the model or the part has nothing to say of them.
    control
        Scores on the same windows with their bars shuffled.
    lags
        Windows by predicted minus true start, -20 to 20 bars, the ends counting what lies beyond.
    comparison
        With another run; None without one.
    """

    run: str
    preset: str
    part: str
    fold: int
    meaning: str
    purged: bool
    num_windows: int
    num_blocks: int
    num_draws: int
    classes: tuple[str, ...]
    looks: tuple[str, ...]
    scores: dict[str, Score]
    slices: tuple[Slice, ...]
    calibration: Calibration | None
    threshold: ThresholdChoice | None
    abstaining: Abstaining | None
    control: dict[str, Score]
    lags: tuple[int, ...]
    comparison: Comparison | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types; what is not finite becomes None."""
        plain: dict[str, Any] = _plain({**dataclasses.asdict(self), "cautions": self.cautions})
        return plain

    @property
    def cautions(self) -> tuple[str, ...]:
        """What makes the scores worth less than they look, a sentence or two each."""
        return tuple(_cautions(self))


def evaluate_run(
    run: str | Path,
    *,
    part: str = "val",
    against: str | Path | None = None,
    store: Store | None = None,
    labels: str | Path | None = None,
    split: str | Path | None = None,
    device: str = "auto",
    num_draws: int = NUM_DRAWS,
    seed: int = SEED,
    say: Say = lambda _text: None,
) -> Evaluation:
    """Judge a run.

    Whatever is fitted sees no window that is judged: floors and terciles come from the training
    part, temperature and threshold from the validation part. On the validation part these two
    have therefore seen what they are judged on.

    Parameters
    ----------
    run
        Folder of a finished `moola_train.fit.fit`.
    part
        ``"val"`` or ``"test"``; a look at the test part is recorded in the run's folder.
    against
        Another run, to be compared window by window.
    store, labels, split
        Where these lie now; where they lay in training when None.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    num_draws, seed
        Of the bootstrap.
    say
        Told what is being done, a line at a time.

    Returns
    -------
    Evaluation
        Ready for :mod:`moola_train.evaluation.page`.

    Raises
    ------
    RunError
        No run, or one of which labels, split or store changed since training.
    TrainError
        A part that is not there or empty, and whatever cannot be read.
    """
    if part not in PARTS:
        raise ConfigError(f"part is {part!r}; choose one of {', '.join(PARTS)}")
    subject = open_subject(run, store=store, labels=labels, split=split, device=device)
    rows = subject.rows(part)
    _require_labelled(subject, part)
    other = None if against is None else open_subject(against, device=device)
    pairs = None if other is None else pair(subject, other, part)
    draws = Draws.of(blocks_of(subject.labels.take(rows)), num_draws, seed)
    looks = _looks(subject, other, part)
    say(f"predicting {len(rows)} windows of {part}")
    judged = predict_part(subject, part)
    truth = subject.truth(rows)
    train = _thinned(subject.rows("train"))
    prices, train_prices = subject.prices(rows), subject.prices(train)
    known = {name: subject.targets[name][train] for name in ("type", "start")}
    rule = RuleFloor.fit(
        train_prices, known["type"], known["start"], len(subject.data.classes)
    ).predict(prices)
    say(f"drawing {num_draws} times from {draws.num_blocks} blocks")
    scores = scores_of(judged.found, truth, subject.priors, draws, rule=rule)
    slices = slices_of(
        judged.found, truth, subject.priors, draws, rule=rule,
        volatility=volatility_of(prices), edges=tercile_edges(volatility_of(train_prices)),
    )  # fmt: skip
    say("shuffling bars for the control")
    shuffled = judged.shuffled(subject, seed)
    comparison = None
    if other is not None and pairs is not None:
        comparison = compare(
            subject, other, judged, pairs, part=part, num_draws=num_draws, seed=seed
        )
    return Evaluation(
        run=str(run),
        preset=subject.data.preset,
        part=part,
        fold=subject.data.fold,
        meaning=MEANING,
        purged=subject.labels.anchored,
        num_windows=len(rows),
        num_blocks=draws.num_blocks,
        num_draws=num_draws,
        classes=subject.data.classes,
        looks=looks,
        scores=scores,
        slices=slices,
        calibration=_calibration(subject, judged, draws),
        threshold=judged.threshold,
        abstaining=_abstaining(subject, judged, draws, rule_spans(prices).move),
        control=scores_of(shuffled, truth, subject.priors, draws, names=CONTROL),
        lags=_lags(judged.found, truth),
        comparison=comparison,
    )


def _require_labelled(subject: Subject, part: str) -> None:
    """Refuse a part that could not be judged, before it is looked at."""
    rows = subject.rows(part)
    if len(rows) == 0:
        raise RunError(f"{subject.run} has no window in part {part!r}; split the labels with one")
    if not are_labelled(subject.truth(rows)).any():
        raise RunError(
            f"none of the {len(rows)} windows of part {part!r} of {subject.run} is labelled; label "
            "some, split again and train again"
        )


def _looks(subject: Subject, other: Subject | None, part: str) -> tuple[str, ...]:
    if part != "test":
        return looks_at(subject.run)
    if other is not None and other.run.resolve() != subject.run.resolve():
        record_look(other.run)
    return record_look(subject.run)


def _thinned(rows: Int64) -> Int64:
    """Rows evenly apart, so that the prices of a large training part need not be held at once."""
    return rows[:: -(-len(rows) // MOST_PRICED)]


def _calibration(subject: Subject, judged: PartPredictions, draws: Draws) -> Calibration | None:
    if "type_probability" not in judged.found:
        return None
    types = subject.targets["type"]
    return calibrate(
        (judged.validation["type_probability"], types[subject.rows("val")]),
        (judged.found["type_probability"], types[judged.rows]),
        draws,
    )


def _abstaining(
    subject: Subject, judged: PartPredictions, draws: Draws, move: Float64
) -> Abstaining | None:
    if "expansion_probability" not in judged.found:
        return None
    truth = subject.truth(judged.rows)
    return abstaining_of(
        judged.found["expansion_probability"], truth["start"] >= 0, are_known(truth["span"]), draws,
        rule_move=move,
    )  # fmt: skip


def _lags(found: Predictions, truth: Targets) -> tuple[int, ...]:
    if "start" not in found:
        return ()
    both = (found["start"] >= 0) & (truth["start"] >= 0)
    lags = np.clip((found["start"] - truth["start"])[both], -MOST_LAG, MOST_LAG)
    return tuple(np.bincount(lags + MOST_LAG, minlength=2 * MOST_LAG + 1).tolist())


def _cautions(found: Evaluation) -> Iterator[str]:
    if found.part == "val":
        fitted = {"temperature": found.calibration, "threshold": found.threshold}
        chosen = ["best epoch", *(name for name, choice in fitted.items() if choice is not None)]
        yield (
            f"These windows flatter: what is chosen on validation ({', '.join(chosen)}) was chosen "
            "on them. The test part is what nothing has seen."
        )
    if found.looks:
        times = "once" if len(found.looks) == 1 else f"{len(found.looks)} times"
        yield (
            f"The test part of this run has been looked at {times} ({', '.join(found.looks)}); "
            "every look that leads to a choice makes it less of a test."
        )
    if not found.purged:
        yield (
            "The windows hold their own bars and have no times, so nothing could be purged: their "
            "bars may lie in windows of the training part, too."
        )
    if found.num_blocks < MIN_BLOCKS:
        yield (
            f"The windows are of {found.num_blocks} days or bases; from fewer than {MIN_BLOCKS} no "
            "interval is drawn, and nothing is said to beat anything."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
