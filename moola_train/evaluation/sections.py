"""What stands on the page of an evaluation: a function a section, empty where nothing is known."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from moola_train.evaluation.evaluate import Evaluation
from moola_train.evaluation.forest import Mark, Row, Scale, forest
from moola_train.evaluation.names import BLOCK_BARS, CLASS, VOLATILITY
from moola_train.evaluation.plots import curve_picture, lag_picture, reliability_picture
from moola_train.evaluation.scores import Score
from moola_train.evaluation.slices import Slice
from moola_train.evaluation.texts import SCORE_HEADERS, number, score_cells, spread

_ERRORS = ("start_mae", "end_mae", "center_mae", "countdown_mae")
_SMALL = ("brier", "ece")  # lower is better, and on a scale of their own

_LEGEND = {
    "interval": "95 %", "model": "this model", "floor": "best constant guess",
    "rule": "rule of one line", "shuffled": "bars shuffled",
}  # fmt: skip


def overview(found: Evaluation) -> str:
    """Draw every metric between 0 and 1 of which more is better."""
    kept = {name: score for name, score in found.scores.items() if score.better == "higher"}
    if not kept:
        return ""
    rows = [_score_row(name, score, found.control.get(name)) for name, score in kept.items()]
    hint = (
        "A model that does not pass the rule has learnt nothing that a line of code does not know: "
        "the 8 bars with the largest net move, and whether the 15 bars before them are wide."
    )
    return _section(
        "Beside its floors",
        hint,
        legend(_LEGEND),
        forest(rows, Scale.share(), unit="higher is better"),
    )


def errors(found: Evaluation) -> str:
    """Errors in bars, and by how many bars starts are late."""
    kept = {name: found.scores[name] for name in _ERRORS if name in found.scores}
    if not kept:
        return ""
    shuffled = {name: found.control.get(name) for name in kept}
    values = [score.value for score in (*kept.values(), *filter(None, shuffled.values()))]
    values += [value for score in kept.values() for value in (score.floor, score.rule) if value]
    rows = [_score_row(name, score, shuffled[name]) for name, score in kept.items()]
    body = [forest(rows, Scale.around(values), unit="bars, lower is better")]
    if sum(found.lags):
        lags = [found.scores.get(f"lead_lag_{name}") for name in ("q1", "median", "q3")]
        low, middle, high = (f"{lag.value:g}" if lag else "-" for lag in lags)
        caption = (
            f"Predicted minus true start: median {middle} bars, quartiles {low} and {high}; the "
            "outermost count what lies beyond"
        )
        body.append(_figures([(caption, lag_picture(found.lags))]))
    return _section("Errors in bars", "", *body)


def comparison(found: Evaluation) -> str:
    """Draw what sets the run apart from another one."""
    other = found.comparison
    if other is None:
        return ""
    body = [
        f'<p class="hint">{html.escape(other.other)} ({html.escape(other.preset)}): '
        f"{other.num_windows:,} windows paired, {other.num_left_out:,} left out. This run minus "
        "the other one, both on the same draws.</p>"
    ]
    errors_in_bars = [name for name in other.differences if name in _ERRORS]
    groups = (
        ("higher is better", [n for n, a in other.differences.items() if a.better == "higher"]),
        ("lower is better", [name for name in _SMALL if name in other.differences]),
        ("errors in bars, lower is better", errors_in_bars),
    )
    for title, names in groups:
        kept = {name: other.differences[name] for name in names}
        if not kept:
            continue
        ends = [v for a in kept.values() for v in (a.interval.low, a.interval.high, a.difference)]
        rows = [
            Row(
                label=name,
                note=f"{apart.difference:+.3f} {_VERDICTS[apart.verdict]}",
                interval=apart.interval,
                marks=(
                    Mark(kind="zero", value=0.0, name="no difference"),
                    Mark(kind="model", value=apart.difference, name="difference"),
                ),
            )
            for name, apart in kept.items()
        ]
        body += [f"<h3>{title}</h3>", forest(rows, Scale.around(ends))]
    return _section("Against another run", "", *body)


_VERDICTS = {"first": "better", "second": "worse", None: ""}


def slices(found: Evaluation) -> str:
    """Draw the classes and the terciles of volatility."""
    body = []
    for by, title in ((CLASS, "By class; accuracy is recall"), (VOLATILITY, "By volatility")):
        parts = [part for part in found.slices if part.by == by]
        if parts:
            body += [f"<h3>{title}</h3>", _slice_table(parts)]
    if not body:
        return ""
    hint = "Terciles of the mean true range over price, cut where the training part is cut."
    return _section("Where it is good", hint, *body)


def control(found: Evaluation) -> str:
    """Draw what remains when bars are shuffled."""
    kept = {n: score for n, score in found.control.items() if score.better == "higher"}
    if not kept:
        return ""
    rows = [
        Row(
            label=name,
            note=f"{number(found.scores[name].value)} → {number(score.value)}",
            interval=score.interval,
            marks=(
                Mark(kind="model", value=found.scores[name].value, name="in order"),
                Mark(kind="shuffled", value=score.value, name="shuffled"),
            ),
            band="shuffled",
        )
        for name, score in kept.items()
    ]
    hint = (
        f"The same windows and labels, their bars shuffled inside blocks of {BLOCK_BARS} and the "
        "features computed anew. What remains is owed to volatility and to where expansions tend "
        "to lie, not to what the bars show."
    )
    samples = {"model": "in order", "shuffled": "shuffled", "interval shuffled": "95 %, shuffled"}
    return _section("Permutation control", hint, legend(samples), forest(rows, Scale.share()))


def calibration(found: Evaluation) -> str:
    """Draw reliability diagrams before and after the temperature."""
    fitted = found.calibration
    if fitted is None:
        return ""
    captions = [
        (f"{name}: ECE {quality['ece']:.3f}, Brier {quality['brier']:.3f}, "
         f"log loss {quality['nll']:.3f}", reliability_picture(bins, f"{name} reliability"))
        for name, quality, bins in (
            ("As it is", fitted.before, fitted.bins),
            (f"Temperature {fitted.temperature:.3f}", fitted.after, fitted.bins_after),
        )
    ]  # fmt: skip
    hint = (
        "Types, in bins of equally many windows. The temperature was fitted on "
        f"{fitted.num_fitted:,} windows of the validation part."
    )
    return _section("Calibration", hint, _figures(captions))


def abstaining(found: Evaluation) -> str:
    """Draw precision against recall of "there is an expansion"."""
    told = found.abstaining
    if told is None:
        return ""
    caption = (
        f"Average precision {number(told.average_precision)} ({spread(told.interval)}), floor "
        f"{number(told.floor)}, rule {number(told.rule)}"
    )
    picture = curve_picture(
        list(zip(told.recall, told.precision, strict=True)), ("recall", "precision"), caption,
        level=told.floor,
    )  # fmt: skip
    hint = f"{told.num_with:,} windows with an expansion, {told.num_without:,} without."
    return _section("Is there an expansion?", hint, _figures([(caption, picture)]))


def threshold(found: Evaluation) -> str:
    """Draw span F1 on the validation part by the mask's threshold."""
    choice = found.threshold
    if choice is None:
        return ""
    best = choice.scores[choice.value]
    caption = f"Span F1 on validation: {best:.3f} at {choice.value:g}"
    marks = [
        (choice.own, choice.scores[choice.own], "own", f"the model's own, {choice.own:g}"),
        (choice.value, best, "chosen", f"chosen, {choice.value:g}"),
    ]
    picture = curve_picture(
        list(choice.scores.items()), ("threshold", "span F1"), caption,
        marks=marks, up=Scale.around(list(choice.scores.values())),
    )  # fmt: skip
    hint = (
        "Above which a bar counts as inside; chosen on the validation part, used everywhere here."
    )
    return _section("Threshold of the mask", hint, _figures([(caption, picture)]))


def table(found: Evaluation) -> str:
    """Write all numbers down."""
    rows = []
    for name, score in found.scores.items():
        shuffled = found.control.get(name)
        cells = _cells(name, score)
        rows.append([*cells[:5], number(shuffled.value if shuffled else None), *cells[5:]])
    headers = (*SCORE_HEADERS[:5], "shuffled", *SCORE_HEADERS[5:])
    return _section("All numbers", "", _table(headers, rows))


def legend(samples: dict[str, str]) -> str:
    """Say what marks mean."""
    entries = []
    for kind, text in samples.items():
        drawn = kind if kind.startswith("interval") else f"mark {kind}"
        sample = f'<span class="sample"><i class="{drawn}"></i></span>'
        entries.append(f"<li>{sample}{html.escape(text)}</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _score_row(name: str, score: Score, shuffled: Score | None) -> Row:
    return Row(
        label=name,
        note=f"{number(score.value)}  ({spread(score.interval)})",
        interval=score.interval,
        marks=(
            Mark(kind="floor", value=score.floor, name="floor"),
            Mark(kind="rule", value=score.rule, name="rule"),
            Mark(kind="shuffled", value=shuffled.value if shuffled else None, name="shuffled"),
            Mark(kind="model", value=score.value, name="model"),
        ),
    )


def _slice_table(parts: Sequence[Slice]) -> str:
    rows = [
        [html.escape(part.name), f"{part.num_windows:,}", *_cells(name, score)]
        for part in parts
        for name, score in part.scores.items()
    ]
    return _table(("windows", "number", *SCORE_HEADERS), rows)


def _cells(name: str, score: Score) -> list[str]:
    *cells, beats_floor, beats_rule = map(html.escape, score_cells(name, score))
    verdicts = (
        f'<span class="{"none" if verdict == "-" else verdict}">{verdict}</span>'
        for verdict in (beats_floor, beats_rule)
    )
    return [*cells, *verdicts]


def _table(headers: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headers)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _figures(pictures: Iterable[tuple[str, str]]) -> str:
    inside = "".join(
        f"<figure><figcaption>{html.escape(caption)}</figcaption>{picture}</figure>"
        for caption, picture in pictures
    )
    return f'<div class="pictures">{inside}</div>'


def _section(title: str, hint: str, *body: str) -> str:
    said = f'<p class="hint">{html.escape(hint)}</p>' if hint else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{''.join(body)}</section>"
