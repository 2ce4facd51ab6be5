"""Checkpoints come back to the bit, and a file that is none runs nothing."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moola_features.errors import OutputError
from moola_train.checkpoint import load_checkpoint, require_same_model, save_checkpoint
from moola_train.errors import CheckpointError

STATE = {
    "model": {"weight": torch.tensor([1.0, float("nan"), -0.0])},
    "list": [torch.arange(3), (1, 2.5, None)],
    "text": "Bär",
}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", STATE)
    found = load_checkpoint(tmp_path / "a.pt")
    weight = STATE["model"]["weight"]  # type: ignore[index]
    assert torch.equal(found["model"]["weight"].view(torch.int32), weight.view(torch.int32))
    assert found["list"][1] == (1, 2.5, None)
    assert found["text"] == "Bär"
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a.pt", STATE)
    real = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: real)
    # What is written beside goes to a device that is always full.
    (tmp_path / f".{real.hex[:8]}-a.pt").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="no space left on device; free some space"):
        save_checkpoint(tmp_path / "a.pt", {"list": [torch.zeros(10_000)]})
    assert load_checkpoint(tmp_path / "a.pt")["text"] == "Bär"
    assert os.listdir(tmp_path) == ["a.pt"]


class Hostile:
    """What would make a folder, were it unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch", "protocol 0"])
def test_a_hostile_file_runs_nothing(tmp_path: Path, kind: str) -> None:
    path, folder = tmp_path / "latest.pt", tmp_path / "made"
    hostile = {"version": 1, "model": Hostile(folder)}
    if kind in {"pickle", "protocol 0"}:
        path.write_bytes(pickle.dumps(hostile, protocol=0 if kind == "protocol 0" else 2))
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=kind == "torch")
    refused(path)
    assert not folder.exists()
    # The test can fail: unpickled the usual way, the folder is made.
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert folder.exists()


def test_arrays_are_no_plain_types(tmp_path: Path) -> None:
    torch.save({"version": 1, "array": np.zeros(2)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_file_that_is_cut_off(tmp_path: Path, share: float) -> None:
    save_checkpoint(tmp_path / "a.pt", STATE)
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path / "b.pt")


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(np.random.default_rng(seed).bytes(200))
    refused(path)


def test_no_file_a_folder_and_other_versions(tmp_path: Path) -> None:
    assert "no checkpoint" in refused(tmp_path / "none.pt")
    assert "cannot be read" in refused(tmp_path)
    torch.save({"version": 99}, tmp_path / "new.pt")
    assert "version 99" in refused(tmp_path / "new.pt")
    torch.save([1], tmp_path / "list.pt")
    assert "version 'list'" in refused(tmp_path / "list.pt")


def test_another_model(tmp_path: Path) -> None:
    saved = {"preset": "jade", "settings": {"hidden_size": 128}}
    require_same_model(saved, {"preset": "jade", "hidden_size": 128}, tmp_path)
    with pytest.raises(CheckpointError, match="hidden_size = 128, not 96"):
        require_same_model(saved, {"preset": "jade", "hidden_size": 96}, tmp_path)
    with pytest.raises(CheckpointError, match="preset = None, not 'jade'"):
        require_same_model({}, {"preset": "jade"}, tmp_path)
