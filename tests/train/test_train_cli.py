"""moola-train as a user meets it: results on stdout, the story on stderr, exit codes."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moola_train import progress
from moola_train.config import RunConfig
from moola_train.errors import RunError
from moola_train.objectives import Supervised
from moola_train.pretrain_config import PretrainConfig
from moola_train.runs import RunFolder
from tests.train.command_line import Moola, Outcome
from tests.train.labelled import anchored, contained
from tests.train.small import FLAGS, Task, make_contained_task, make_task

PRETRAIN = (*FLAGS, "--preset", "jade-compact", "--stride", 13)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("cli"))


def fit_of(task: Task, *more: object) -> tuple[object, ...]:
    assert task.store is not None
    return "fit", task.store.path, "--labels", task.labels, "--split", task.split, *FLAGS, *more


def pretrain_of(task: Task, *more: object) -> tuple[object, ...]:
    assert task.store is not None
    return "pretrain", task.store.path, *PRETRAIN, *more


def one_line(done: Outcome, code: int, *parts: str) -> None:
    """Check that stderr ends with one line that names the thing and says what to do."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    for part in parts:
        assert part in last, last
    assert done.out == ""


def everything_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestModels:
    def test_presets_are_listed(self, moola: Moola) -> None:
        done = moola("models")
        assert done.code == 0
        assert "jade-compact" in done.out
        assert "96,779" in done.out

    def test_json_is_one_document(self, moola: Moola) -> None:
        found = {entry["name"]: entry for entry in json.loads(moola("models", "--json").out)}
        assert found["jade-compact"]["num_parameters"] == 96_779
        assert found["jade-compact"]["outputs"]["span"] == ["B", 105]
        assert set(found) >= {"jade", "jade-mae", "jade-span", "multitask", "simple-lstm"}


class TestSplit:
    def test_it_writes_a_split_and_says_how_much_is_where(
        self, moola: Moola, task: Task, tmp_path: Path
    ) -> None:
        assert task.store is not None
        target = tmp_path / "split.json"
        command = (
            "split", "--labels", task.labels, "--store", task.store.path, "-o", target,
            "--folds", 2, "--val-share", 0.2, "--embargo-bars", 50,
        )  # fmt: skip
        done = moola(*command, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        written = json.loads(target.read_text())
        assert [f["train"] for f in found["folds"]] == [len(p["train"]) for p in written["parts"]]
        assert len(found["folds"]) == 2
        assert written["embargo_bars"] == 50
        shown = moola(*command)
        assert "purge 104, embargo 50, warm-up 20 bars" in shown.out
        assert "ordered by: bars of the store" in shown.out

    def test_it_says_where_nothing_was_purged(self, moola: Moola, tmp_path: Path) -> None:
        task = make_contained_task(tmp_path)
        command = ("split", "--labels", task.labels, "-o", tmp_path / "again.json")
        told = "as given, bases together; without times nothing can be purged"
        assert told in moola(*command).out
        assert json.loads(moola(*command, "--json").out)["order"] == told

    def test_a_mistake_is_one_line(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        target = tmp_path / "split.json"
        anchored_only = moola("split", "--labels", task.labels, "-o", target)
        one_line(anchored_only, 1, "give the store that they stand in")
        assert task.store is not None
        short = moola(
            "split", "--labels", task.labels, "--store", task.store.path, "-o", target,
            "--purge-bars", 10,
        )  # fmt: skip
        one_line(short, 1, "purge_bars is 10", "at least 104")
        assert not target.exists()


class TestFit:
    def test_metrics_stand_beside_their_floors(
        self, moola: Moola, task: Task, tmp_path: Path
    ) -> None:
        done = moola(*fit_of(task, "--run-folder", tmp_path / "run"))
        assert done.code == 0, done.err
        for word in ("finished at epoch 2", "floor", "span_f1", "accuracy", "parameters"):
            assert word in done.out
        assert "windows are gathered on the host" in done.err

    def test_json_is_the_summary(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        done = moola(*fit_of(task, "--run-folder", tmp_path / "run", "--json"))
        assert json.loads(done.out) == json.loads((tmp_path / "run" / "summary.json").read_text())

    def test_windows_with_their_own_prices_need_no_store(
        self, moola: Moola, tmp_path: Path
    ) -> None:
        task = make_contained_task(tmp_path)
        done = moola(
            "fit",
            "--labels",
            task.labels,
            "--split",
            task.split,
            "--run-folder",
            tmp_path / "run",
            *FLAGS,
        )
        assert done.code == 0, done.err

    def test_settings_come_from_a_file_and_flags_override_them(
        self, moola: Moola, task: Task, tmp_path: Path
    ) -> None:
        file = tmp_path / "run.toml"
        file.write_text("[loop]\nepochs = 7\nseed = 3\n[augment]\njitter = 0.5\n")
        done = moola(*fit_of(task, "--config", file, "--print-config", "--freeze-epochs", 4))
        assert done.code == 0, done.err
        (tmp_path / "shown.toml").write_text(done.out)
        config = RunConfig.from_toml(tmp_path / "shown.toml")
        assert (config.loop.epochs, config.loop.seed) == (2, 3)
        assert config.augment.jitter == 0.5
        assert config.optimiser.freeze_epochs == 4
        assert config.optimiser.unfreeze_lr_scale == 0.3

    def test_a_run_that_is_over_may_be_resumed(
        self, moola: Moola, task: Task, tmp_path: Path
    ) -> None:
        run = ("--run-folder", tmp_path / "run", "--json")
        first = moola(*fit_of(task, *run, "--resume", "auto"))
        again = moola(*fit_of(task, *run, "--resume", "auto"))
        assert first.code == again.code == 0
        assert json.loads(first.out) == json.loads(again.out)
        other = moola(*fit_of(task, *run, "--resume", "auto", "--seed", 13))
        one_line(other, 1, "was run with loop.seed = 17, not 13", "name another folder")
        one_line(moola(*fit_of(task, *run)), 1, "holds a run", "--resume auto")

    def test_a_run_that_is_stopped_says_how_to_go_on(
        self, moola: Moola, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @contextlib.contextmanager
        def stopping(_num_epochs: int) -> Iterator[Callable[[dict[str, Any]], None]]:
            yield lambda _record: signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patched:
            patched.setattr(progress, "training_progress", stopping)
            done = moola(*fit_of(task, "--run-folder", tmp_path / "run"))
        assert done.code == 1
        assert done.err.strip() == "stopped at step 2; go on with --resume auto"
        again = moola(*fit_of(task, "--run-folder", tmp_path / "run", "--resume", "auto"))
        assert again.code == 0
        assert "finished at epoch 2" in again.out

    @pytest.mark.parametrize(
        ("flags", "code", "parts"),
        [
            (("--preset", "jade-giant"), 2, ("no preset 'jade-giant'", "choose one of")),
            (("--preset", "jade-mae"), 1, ("'jade-mae' is for pretraining", "jade-compact")),
            (("--epochs", 0), 2, ("loop.epochs is 0", "from 1 to")),
            (("--set", "loop.epoch=3"), 2, ("unknown setting 'loop.epoch'", "loop.epochs")),
            (("--set", "epochs"), 2, ("'epochs' is not SECTION.NAME=VALUE",)),
            (("--fold", 3), 1, ("fold is 3", "has 0 to 0")),
            (("--config", "nowhere.toml"), 2, ("config nowhere.toml", "readable file")),
            (("--encoder", "none.safetensors"), 1, ("encoder none.safetensors", "pretrain")),
            (("--encoder", "none.pt"), 1, ("encoder none.pt", ".safetensors")),
            (("--set", "loop.watch=luck"), 2, ("loop.watch is 'luck'", "choose one of loss, acc")),
            (
                ("--unfreeze-lr-scale", 0.0001),
                2,
                ("optimiser.unfreeze_lr_scale is 0.0001, which does nothing", "--freeze-epochs"),
            ),
            (
                ("--set", "loss.focal_gamma=5"),
                2,
                ("focal_gamma is 5.0", "type_loss = 'focal'"),
            ),
            (("--run-folder", ""), 2, ("--run-folder", "empty", "name a folder")),
        ],
    )
    def test_a_mistake_is_one_line(
        self, moola: Moola, task: Task, tmp_path: Path,
        flags: tuple[Any, ...], code: int, parts: tuple[str, ...],
    ) -> None:  # fmt: skip
        one_line(moola(*fit_of(task, "--run-folder", tmp_path / "run", *flags)), code, *parts)
        assert not (tmp_path / "run").exists()

    def test_a_folder_without_a_checkpoint_is_begun_anew(
        self, moola: Moola, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def losses(*_arguments: object) -> None:
            raise RunError("no; give another")

        with monkeypatch.context() as patched:
            patched.setattr(Supervised, "losses", losses)
            one_line(moola(*fit_of(task, "--run-folder", tmp_path / "run")), 1, "no; give another")
        assert (tmp_path / "run" / "data.json").exists()
        done = moola(*fit_of(task, "--run-folder", tmp_path / "run", "--seed", 13))
        assert done.code == 0, done.err

    @pytest.mark.parametrize("preset", ["jade-compact", "jade", "jade-span"])
    def test_whatever_is_scored_can_be_watched(
        self, moola: Moola, task: Task, tmp_path: Path, preset: str
    ) -> None:
        run = ("--run-folder", tmp_path / "run", "--preset", preset, "--epochs", 1)
        assert moola(*fit_of(task, *run)).code == 0
        best = json.loads((tmp_path / "run" / "summary.json").read_text())["best"]
        names = [name for name, metric in best["metrics"].items() if metric["better"]]
        done = moola(*fit_of(task, *run, "--set", "loop.watch=luck"))
        one_line(done, 2, f"choose one of {', '.join(names)}")

    def test_a_run_that_is_refused_shows_no_progress(
        self, moola: Moola, task: Task, tmp_path: Path
    ) -> None:
        given = ("--run-folder", tmp_path / "run", "--set", "loop.cuda_graph=true")
        done = moola(*fit_of(task, *given, "--device", "cpu"))
        one_line(done, 2, "loop.cuda_graph is true", "set it to false")
        assert len(done.err.strip().splitlines()) == 1

    def test_what_does_not_fit_says_what_would(
        self, moola: Moola, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Supervised.losses

        def losses(self: Supervised, model: Any, batch: Any) -> Any:
            if batch["features"].shape[1] > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB.")
            return real(self, model, batch)

        monkeypatch.setattr(Supervised, "losses", losses)
        done = moola(*fit_of(task, "--run-folder", tmp_path / "run"))
        one_line(done, 1, "ran out of memory on cpu with 8 windows", "give --batch-size 2 and")
        small = ("--run-folder", tmp_path / "small", "--batch-size", 2)
        again = moola(*fit_of(task, *small, "--epochs", 1))
        assert again.code == 0, again.err

    @pytest.mark.parametrize("command", ["fit", "pretrain"])
    def test_a_folder_that_another_run_writes_is_left_alone(
        self, moola: Moola, task: Task, tmp_path: Path, command: str
    ) -> None:
        given = ("--run-folder", tmp_path / "run", "--resume", "auto")
        with RunFolder(tmp_path / "run").held():
            if command == "fit":
                done = moola(*fit_of(task, *given))
            else:
                done = moola(*pretrain_of(task, "-o", tmp_path / "e.safetensors", *given))
        one_line(done, 1, "is being written by another run", "name another folder")
        assert list((tmp_path / "run").iterdir()) == []

    @pytest.mark.parametrize("command", ["fit", "pretrain"])
    @pytest.mark.parametrize("place", ["", "run", "link"])
    def test_the_store_is_no_place_for_a_run(
        self, moola: Moola, task: Task, tmp_path: Path, command: str, place: str
    ) -> None:
        assert task.store is not None
        (tmp_path / "link").symlink_to(task.store.path)
        folder = tmp_path / "link" if place == "link" else task.store.path / place
        before = everything_below(task.store.path)
        if command == "fit":
            done = moola(*fit_of(task, "--run-folder", folder))
        else:
            target = tmp_path / "e.safetensors"
            done = moola(*pretrain_of(task, "-o", target, "--run-folder", folder))
        one_line(done, 1, "run folder", "the store", "name another folder")
        assert everything_below(task.store.path) == before

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be had")
    def test_no_gpu_is_said(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        done = moola(*fit_of(task, "--run-folder", tmp_path / "run", "--device", "cuda"))
        one_line(done, 2, "device is 'cuda'", "give auto or cpu")

    @pytest.mark.parametrize(
        ("columns", "parts"),
        [
            ({"start_time": ["1999-01-04 10:00"] * 2}, ("start_time", "no bar of")),
            ({"expansion_start": [40, 105]}, ("expansion_start", "105", "from 0 to 104")),
            ({"expansion_start": [40, 60]}, ("expansion_start", "60", "before it")),
            ({"label": ["retracement", "breakout"]}, ("label", "breakout", "the classes are")),
        ],
    )
    def test_bad_labels_are_one_line(
        self, moola: Moola, task: Task, tmp_path: Path, columns: dict[str, Any],
        parts: tuple[str, ...],
    ) -> None:  # fmt: skip
        assert task.store is not None
        labels = tmp_path / "labels.parquet"
        anchored(task.store.time[[200, 2_000]].tolist()).with_columns(
            **{name: _series(values) for name, values in columns.items()}
        ).write_parquet(labels)
        done = moola(*fit_of(task, "--labels", labels, "--run-folder", tmp_path / "run"))
        one_line(done, 1, "labels.parquet", *parts)

    def test_prices_and_a_store_do_not_mix(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        labels = tmp_path / "labels.parquet"
        contained(4).write_parquet(labels)
        done = moola(*fit_of(task, "--labels", labels, "--run-folder", tmp_path / "run"))
        one_line(done, 1, "windows hold their own prices", "leave the store out")


def _series(values: list[Any]) -> Any:
    import polars as pl

    return pl.Series(values)


class TestPretrain:
    def test_an_encoder_goes_on_into_a_fit(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        file = tmp_path / "encoder.safetensors"
        parts = ("--split", task.split, "--labels", task.labels)
        done = moola(
            *pretrain_of(task, "-o", file, "--run-folder", tmp_path / "pretraining", *parts)
        )
        assert done.code == 0, done.err
        for word in ("column", "interpolation", "beats both", "range_z", "all"):
            assert word in done.out
        card = json.loads(file.with_suffix(".json").read_text())
        assert card["data"]["fold"] == "0"
        fitted = moola(
            *fit_of(
                task,
                "--run-folder",
                tmp_path / "run",
                "--encoder",
                file,
                "--freeze-epochs",
                1,
                "--json",
            )
        )
        assert fitted.code == 0, fitted.err
        assert "loaded encoder.lstm.weight_ih_l0\n" in fitted.err
        assert "refused mask_vector: no part of the encoder\n" in fitted.err
        assert len(json.loads(fitted.out)["transfer"]["loaded"]) == 8

    def test_json_is_the_summary(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        target = tmp_path / "e.safetensors"
        done = moola(*pretrain_of(task, "-o", target, "--run-folder", tmp_path / "run", "--json"))
        found = json.loads(done.out)
        assert found == json.loads((tmp_path / "run" / "summary.json").read_text())
        assert found["encoder"] == str(target)
        assert len(found["columns"]) == 11

    def test_settings_are_its_own(self, moola: Moola, task: Task, tmp_path: Path) -> None:
        assert task.store is not None
        done = moola("pretrain", task.store.path, "-o", "e.safetensors", "--print-config",
                     "--stride", 9, "--objective", "mae")  # fmt: skip
        (tmp_path / "shown.toml").write_text(done.out)
        config = PretrainConfig.from_toml(tmp_path / "shown.toml")
        assert config == PretrainConfig().override({"pretrain.stride": 9})
        assert config.model.preset == "jade-mae"

    @pytest.mark.parametrize(
        ("flags", "code", "parts"),
        [
            (("-o", "e.pt"), 1, ("encoder e.pt", ".safetensors")),
            (("-o", "none/e.safetensors"), 1, ("none", "there is no folder")),
            (("--split", "split.json"), 2, ("--split and --labels belong together",)),
            (("--stride", 0), 2, ("pretrain.stride is 0",)),
            (("--objective", "gpt"), 2, ("'gpt' is not",)),
            (("--set", "pretrain.masking=holes"), 2, ("pretrain.masking is 'holes'", "patch")),
            (("--set", "loop.watch=luck"), 2, ("loop.watch is 'luck'", "loss, loss.")),
            (("--set", "data.balanced=true"), 2, ("data.balanced = true does nothing", "drop it")),
            (("--set", "loss.type_loss=focal"), 2, ("loss.type_loss = 'focal' does nothing",)),
            (("--preset", "multitask"), 1, ("'multitask' learns candle, ", "jade-mae")),
            (("--set", "pretrain.val_share=0.001"), 1, ("none is left for val", "val_share")),
        ],
    )
    def test_a_mistake_is_one_line(
        self, moola: Moola, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        flags: tuple[Any, ...], code: int, parts: tuple[str, ...],
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        done = moola(*pretrain_of(task, "-o", "e.safetensors", *flags))
        one_line(done, code, *parts)
        assert not (tmp_path / "e.safetensors").exists()

    @pytest.mark.parametrize(
        ("output", "parts"),
        [
            ("split.safetensors", ("card beside the output", "split.json", "read as the split")),
            ("labels.safetensors", ("card beside the output", "read as the labels")),
            ("bars.zarr/e.safetensors", ("inside the store", "choose another folder")),
            ("run/data.safetensors", ("data.json", "file of the run itself")),
            ("run/weights.safetensors", ("file of the run itself", "choose another name")),
        ],
    )
    def test_nothing_that_is_read_is_written_over(
        self, moola: Moola, task: Task, tmp_path: Path, output: str, parts: tuple[str, ...]
    ) -> None:
        store = tmp_path / "bars.zarr"
        assert task.store is not None
        shutil.copytree(task.store.path, store)
        split, labels = tmp_path / "split.json", tmp_path / "labels.json"
        shutil.copy(task.split, split)
        shutil.copy(task.labels, labels)
        (tmp_path / "run").mkdir()
        before = everything_below(tmp_path)
        done = moola(
            "pretrain", store, *PRETRAIN, "--labels", labels, "--split", split,
            "-o", tmp_path / output, "--run-folder", tmp_path / "run",
        )  # fmt: skip
        one_line(done, 2, *parts)
        assert everything_below(tmp_path) == before

    def test_an_encoder_of_another_size_names_both_shapes(
        self, moola: Moola, task: Task, tmp_path: Path
    ) -> None:
        file = tmp_path / "e.safetensors"
        moola(*pretrain_of(task, "-o", file, "--run-folder", tmp_path / "pretraining"))
        done = moola(
            *fit_of(
                task, "--encoder", file, "--run-folder", tmp_path / "run", "--set", "model.hidden=9"
            )
        )
        one_line(done, 1, "weight_ih_l0 is [32, 11], the model's is [36, 11]", "hidden size")


class TestInterrupted:
    @pytest.mark.parametrize(
        ("command", "place", "said"),
        [
            ("inspect", "moola_train.labels.read_labels", ""),
            ("split", "moola_train.labels.read_labels", "; nothing is left half-written"),
            ("label", "moola_train.labelling.label_store", "; nothing is left half-written"),
            (
                "evaluate", "moola_train.evaluation.evaluate.evaluate_run",
                "; nothing is left half-written",
            ),
            ("review", "moola_train.review.start.open_review", "; every answer is on disk"),
            ("fit", "moola_train.fit.fit", "; the last checkpoint stands"),
            ("pretrain", "moola_train.pretrain.pretrain", "; the last checkpoint stands"),
        ],
    )  # fmt: skip
    def test_each_command_says_what_it_leaves_behind(
        self, moola: Moola, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        command: str, place: str, said: str,
    ) -> None:  # fmt: skip
        def interrupt(*_arguments: object, **_options: object) -> None:
            signal.raise_signal(signal.SIGINT)

        assert task.store is not None
        store, labels = task.store.path, ("--labels", task.labels)
        arguments: dict[str, tuple[object, ...]] = {
            "inspect": (task.labels,), "split": (*labels, "-o", tmp_path / "s.json"),
            "label": (store, "-o", tmp_path / "l.parquet"), "evaluate": (tmp_path,),
            "review": (store, *labels), "fit": fit_of(task, "--run-folder", tmp_path)[1:],
            "pretrain": pretrain_of(task, "-o", tmp_path / "e.safetensors")[1:],
        }  # fmt: skip
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(place, interrupt)
        done = moola(command, *arguments[command])
        assert (done.code, done.out) == (1, "")
        assert done.err.strip().splitlines()[-1] == f"interrupted{said}"


def test_it_is_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moola_train", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("fit", "models", "pretrain", "split"):
        assert f"  {command} " in done.stdout
