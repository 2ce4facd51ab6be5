"""What a person sees of an evaluation: the command's tables, its JSON, and the page."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from moola_features.errors import OutputError
from moola_train.config import RunConfig
from moola_train.errors import ConfigError
from moola_train.evaluation.abstaining import Abstaining
from moola_train.evaluation.bootstrap import Interval
from moola_train.evaluation.evaluate import Evaluation, evaluate_run
from moola_train.evaluation.forest import Mark, Row, Scale, forest
from moola_train.evaluation.page import draw_page, write_page
from moola_train.evaluation.scores import Difference, Score
from moola_train.fit import fit
from tests.train.command_line import Moola
from tests.train.small import SETTINGS, Task, make_task

SMALL = RunConfig.from_dict(SETTINGS)
VOID = {"meta", "link"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def runs(task: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("paged")
    return {
        preset: fit(
            task.store, task.labels, task.split, folder / preset,
            SMALL.override({"model.preset": preset, "loop.epochs": 1}),
        ).run
        for preset in ("jade-compact", "jade-span")
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> Evaluation:
    return evaluate_run(runs["jade-compact"], against=runs["jade-span"], num_draws=40)


class Reader(HTMLParser):
    """Check that elements are closed in order, and gather what is said and asked for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def empty(found: Evaluation) -> Evaluation:
    """An evaluation of a model that says nothing but spans of nothing."""
    return dataclasses.replace(
        found, scores={}, slices=(), calibration=None, threshold=None, abstaining=None,
        control={}, lags=(), comparison=None,
    )  # fmt: skip


class TestPage:
    def test_it_needs_nothing_else(self, found: Evaluation) -> None:
        page = draw_page(found)
        reader = Reader(page)
        assert reader.addresses == ["data:,"]
        assert "script" not in reader.tags
        assert "http:" not in page
        assert "https:" not in page
        assert "url(" not in page
        assert "default-src 'none'" in page

    def test_everything_is_on_it(self, found: Evaluation) -> None:
        reader = Reader(draw_page(found))
        for title in (
            "Beside its floors", "Errors in bars", "Against another run", "Where it is good",
            "Permutation control", "Calibration", "Threshold of the mask", "All numbers",
        ):  # fmt: skip
            assert title in reader.text
        assert found.meaning in reader.text
        for name, score in found.scores.items():
            assert name in reader.text
            assert f"{score.value:.3f}" in reader.text
        assert "(best epoch, temperature, threshold) was chosen on them" in reader.text
        assert reader.tags.count("svg") == 4  # lags, two of reliability, threshold

    def test_the_test_part_says_how_often_it_was_seen(self, found: Evaluation) -> None:
        told = dataclasses.replace(found, part="test", looks=("2024-01-01T00:00:00Z",) * 3)
        text = Reader(draw_page(told)).text
        assert "looked at 3 times" in text
        assert "These windows flatter" not in text

    def test_abstaining_is_drawn(self, found: Evaluation) -> None:
        interval = Interval(0.8, 0.9)
        told = Abstaining(
            num_with=30, num_without=10, average_precision=0.85, interval=interval, floor=0.75,
            rule=0.8, over_rule=interval, recall=(0.0, 1.0), precision=(1.0, 0.75),
        )  # fmt: skip
        text = Reader(draw_page(dataclasses.replace(found, abstaining=told))).text
        assert "Average precision 0.850 (0.800 to 0.900), floor 0.750, rule 0.800" in text

    def test_names_are_text(self, found: Evaluation) -> None:
        named = dataclasses.replace(found, run="runs/<b>&co", classes=("<i>", "%%style%%"))
        page = draw_page(named)
        Reader(page)
        assert "<b>&co" not in page
        assert "&lt;b&gt;&amp;co" in page

    def test_what_is_not_known_is_left_out(self, found: Evaluation) -> None:
        reader = Reader(draw_page(empty(found)))
        assert "Calibration" not in reader.text
        assert "nan" not in reader.text.lower().split()
        unknown = Score(value=0.5, interval=Interval(float("nan"), float("nan")), floor=None,
                        better="higher")  # fmt: skip
        text = Reader(draw_page(dataclasses.replace(empty(found), scores={"odd": unknown}))).text
        assert "0.500" in text
        assert "0.500 - -" in " ".join(text.split())  # neither interval nor floor

    def test_it_is_a_page_whole_or_not_at_all(self, found: Evaluation, tmp_path: Path) -> None:
        write_page(found, tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text(encoding="utf-8") == draw_page(found)
        with pytest.raises(ConfigError, match=r"give a name that ends in \.html"):
            write_page(found, tmp_path / "page.pdf")
        with pytest.raises(OutputError, match="there is no folder"):
            write_page(found, tmp_path / "no" / "page.html")


class TestForest:
    def test_marks_lie_where_their_values_do(self) -> None:
        row = Row(
            label="hit", note="0.5", interval=Interval(0.25, 0.75),
            marks=tuple(
                Mark(kind=kind, value=value, name=kind)
                for kind, value in (("model", 0.5), ("rule", None))
            ),
        )  # fmt: skip
        drawn = forest([row], Scale.share())
        assert 'class="interval" style="left:25.0%;width:50.00%"' in drawn
        assert 'class="mark model" style="left:50.0%"' in drawn
        assert "mark rule" not in drawn
        Reader(drawn)

    @pytest.mark.parametrize(
        ("values", "ticks"),
        [
            ([0.3, 19.0], (0, 5, 10, 15, 20)), ([-0.4, 0.1], (-0.4, -0.2, 0, 0.2)),
            ([], (0, 0.25, 0.5, 0.75, 1)), ([float("nan"), 3.0], (0, 1, 2, 3)),
            ([0.0], (0, 0.25, 0.5, 0.75, 1)), ([-7.0, -5.0], (-8, -6, -4, -2, 0)),
        ],
    )  # fmt: skip
    def test_scales_are_round_and_hold_everything(
        self, values: list[float], ticks: tuple[float, ...]
    ) -> None:
        assert Scale.around(values).ticks == pytest.approx(ticks)

    def test_what_lies_outside_stays_at_the_edge(self) -> None:
        assert [Scale.share().place(value) for value in (-1.0, 0.123456, 2.0)] == [0, 12.35, 100]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("low", "high", "better", "expected"),
        [
            (0.52, 0.6, "higher", "yes"), (0.45, 0.6, "higher", "unsure"),
            (0.4, 0.54, "lower", "no"), (0.4, 0.49, "lower", "yes"), (0.5, 0.6, "higher", "unsure"),
        ],
    )  # fmt: skip
    def test_a_floor_is_beaten_by_the_whole_interval(
        self, low: float, high: float, better: str, expected: str
    ) -> None:
        value = 0.51 if better == "higher" or high > 0.5 else 0.45
        score = Score(value=value, interval=Interval(low, high), floor=0.5, better=better)
        assert score.beats_floor == expected
        assert score.beats_rule is None

    @pytest.mark.parametrize(
        ("low", "high", "better", "expected"),
        [
            (0.1, 0.2, "higher", "first"), (0.1, 0.2, "lower", "second"),
            (-0.2, -0.1, "higher", "second"), (-0.2, -0.1, "lower", "first"),
            (-0.1, 0.2, "higher", None), (0.0, 0.2, "higher", None), (0.1, 0.2, None, None),
        ],
    )  # fmt: skip
    def test_a_difference_counts_beyond_zero(
        self, low: float, high: float, better: str | None, expected: str | None
    ) -> None:
        apart = Difference(
            first=0.0, second=0.0, difference=(low + high) / 2, interval=Interval(low, high),
            better=better,
        )  # fmt: skip
        assert apart.verdict == expected


class TestCommand:
    def test_it_prints_tables(self, moola: Moola, runs: dict[str, Path]) -> None:
        done = moola(
            "evaluate", runs["jade-compact"], "--draws", 30, "--against", runs["jade-span"]
        )
        assert done.code == 0, done.err
        for words in (
            "beats its floor", "beats the rule", "by class; accuracy is recall", "by volatility",
            "permutation control: bars shuffled inside blocks of 240", "better beyond chance",
            "temperature", "threshold", "Recognition, not forecasting", "jade-span",
        ):  # fmt: skip
            assert words in done.out
        assert "looked at" not in done.out
        assert "These windows flatter" in done.out
        slices = done.out.split("by volatility")[1].split("permutation control")[0]
        assert "floor" in slices.splitlines()[1]
        assert "predicting" in done.err
        assert "predicting" not in done.out

    def test_json_is_one_document(
        self, moola: Moola, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        run, page = runs["jade-span"], tmp_path / "report.html"
        done = moola("evaluate", run, "--draws", 30, "--json", "-o", page, "--seed", 3)
        assert done.code == 0, done.err
        told = json.loads(done.out)
        assert told == evaluate_run(run, num_draws=30, seed=3).to_dict()
        assert [text for text in told["cautions"] if "These windows flatter" in text]
        assert "hit_at_3" in page.read_text(encoding="utf-8")
        assert f"wrote {page}" in done.err

    def test_looks_at_the_test_part_are_printed(
        self, moola: Moola, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        run = Path(shutil.copytree(runs["jade-span"], tmp_path / "run"))
        for words in ("looked at once", "looked at 2 times"):
            done = moola("evaluate", run, "--part", "test", "--draws", 10)
            assert done.code == 0, done.err
            assert words in done.out

    @pytest.mark.parametrize(
        ("flags", "code", "words"),
        [
            (("--part", "train"), 2, "'train' is not one of 'val', 'test'"),
            (("-o", "page.pdf"), 2, "give a name that ends in .html"),
            (("--seed", -1), 2, "seed is -1; it must be at least 0"),
            (("-o", "no/page.html"), 1, "/no; make it first"),
            (("--draws", 0), 2, "num_draws is 0; it must be from 5 to 100,000"),
            (("--draws", 10**11), 2, "num_draws is 100000000000; it must be from 5 to"),
            (("--against", "nowhere"), 1, "nowhere is no run: data.json cannot be read"),
            (("--labels", "gone.parquet"), 1, "was trained on labels at gone.parquet"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, moola: Moola, runs: dict[str, Path], flags: tuple[Any, ...], code: int, words: str
    ) -> None:
        done = moola("evaluate", runs["jade-span"], *flags)
        assert done.code == code
        assert done.out == ""
        assert "Traceback" not in done.err
        assert words in done.err.strip().splitlines()[-1]

    def test_a_page_is_not_written_into_what_is_read(
        self, moola: Moola, runs: dict[str, Path], task: Task
    ) -> None:
        assert task.store is not None
        done = moola("evaluate", runs["jade-span"], "-o", task.store.path / "page.html")
        assert done.code == 2
        assert f"inside the store {task.store.path}; choose another folder" in done.err
        assert not (task.store.path / "page.html").exists()

    def test_dates_divide(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        assert task.store is not None
        command = (
            "split", "--labels", task.labels, "--store", task.store.path,
            "-o", tmp_path / "split.json", "--json",
        )  # fmt: skip
        done = moola(*command, "--val-from", "2020-01-08", "--test-from", "2020-01-09 12:00")
        assert done.code == 0, done.err
        counts = json.loads(done.out)["folds"][0]
        assert all(counts[part] > 0 for part in ("train", "val", "test"))
        both = moola(*command, "--val-from", "2020-01-08", "--val-share", 0.2)
        assert both.code == 1
        assert "leave out folds and shares" in both.err
        never = moola(*command, "--val-from", "yesterday")
        assert never.code == 2
        assert "val_from is 'yesterday'; give a time" in never.err
