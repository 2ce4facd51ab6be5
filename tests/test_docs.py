"""What the documents say is true: their commands run, their example runs, their tables agree."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moola_features as mf
from moola_features.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the data that the README's commands name."""
    shutil.copytree(ROOT / "data", tmp_path / "data")
    return tmp_path


def test_readme_commands_run(checkout: Path) -> None:
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("moola-features ")]
    assert len(commands) >= 5
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "moola_features", *command[1:]],
            cwd=checkout, env=_environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (checkout / "chart.html").stat().st_size > 0
    assert (checkout / "plain-files" / "features_11d.npy").exists()


def test_readme_example_runs(checkout: Path) -> None:
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=checkout, env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20000 ")


def test_make_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.skipif(
    not (ROOT / ".venv" / ".installed").exists(), reason="`make` has set up no .venv here"
)
def test_make_demo_runs_and_installs_nothing_again(tmp_path: Path) -> None:
    demo = tmp_path / "a demo"
    stamp = ROOT / ".venv" / ".installed"
    before = stamp.stat().st_mtime_ns
    for _ in range(2):  # the second time, everything is there already
        done = subprocess.run(
            ["make", "demo", f"DEMO={demo}", "BARS=60000"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert stamp.stat().st_mtime_ns == before
    assert len(mf.open_store(demo / "bars.zarr")) == 60_000
    assert (demo / "chart.html").exists()
    assert (demo / "chart.png").exists()
    assert (demo / "labels.parquet").exists()


@pytest.mark.parametrize(
    ("document", "config"),
    [
        ("README.md", mf.FeatureConfig()),
        ("docs/features.md", mf.FeatureConfig()),
        ("docs/features.md", mf.FeatureConfig(consol_proxy=True, context=True)),
        ("docs/features.md", mf.FeatureConfig(family="returns")),
    ],
)
def test_tables_name_every_column_with_its_range(document: str, config: mf.FeatureConfig) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for column in mf.columns(config):
        line = next((line for line in text.splitlines() if column.name in line), None)
        assert line is not None, column.name
        bounds = f"[{column.low:g}, {column.high:g}]"
        assert (bounds if bounds != "[-inf, inf]" else "unbounded") in line, line


def test_changelog_and_readme_name_every_command() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in cli.commands:
        assert f"`{name}`" in changelog, name
        assert f"moola-features {name}" in readme, name


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
