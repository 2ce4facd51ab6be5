"""What the package may import: nothing heavy until it is used, and never what training needs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import moola_features as mf
from tests.markets import ROOT, run_python, walk, write

PACKAGE = ROOT / "moola_features"
HEAVY = (
    "numba", "llvmlite", "polars", "pyarrow", "zarr", "torch", "matplotlib", "plotly", "pandas",
    "rich", "click", "sklearn", "scipy",
)  # fmt: skip

LOADED = """
import sys
before = set(sys.modules)
import moola_features
import json
print(json.dumps(sorted(set(sys.modules) - before)))
"""

IMPORT_SECONDS = """
import time
began = time.process_time()
import moola_features
print(time.process_time() - began)
"""

WITHOUT = """
import sys

blocked = ("torch", "moola_train", "matplotlib", "plotly", "pandas", "sklearn", "scipy")
sys.modules.update(dict.fromkeys(blocked))  # importing None raises ModuleNotFoundError
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("torch was not blocked")
import moola_features as mf

source, target = sys.argv[1:]
bars = mf.read_bars(source)
features = mf.compute(bars)
report = mf.build(source, target)
store = mf.open_store(target)
assert store.features.tobytes() == features.values.tobytes()
assert store.windows().gather([0, -1]).shape == (2, 105, 11)
assert mf.transform_windows(store.ohlc[None, :105]).shape == (1, 105, 11)
assert mf.Stream().update(*(array[0] for array in bars.arrays)).shape == (11,)
assert len(mf.swings(bars).index)
for name in mf.__all__:
    getattr(mf, name)
assert [x for x in sys.modules if x.partition(".")[0] in blocked] == list(blocked)
print(report.num_bars)
"""


def imported(path: Path) -> set[str]:
    """First names of all modules that a file imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found


def test_importing_loads_nothing_heavy():
    loaded = json.loads(run_python(LOADED).stdout)
    assert "moola_features" in loaded
    assert [name for name in loaded if name.partition(".")[0] in (*HEAVY, "numpy")] == []
    assert [name for name in loaded if name.startswith("moola_features.")] == []


def test_importing_is_quick():
    seconds = sorted(float(run_python(IMPORT_SECONDS).stdout) for _ in range(3))
    assert seconds[1] < 0.05  # of the processor's time, which other work does not lengthen much


def test_works_without_what_training_and_charts_need(tmp_path):
    source = write(walk(500), tmp_path / "bars.parquet")
    assert run_python(WITHOUT, source, tmp_path / "x.zarr").stdout == "500\n"


def test_every_public_name_resolves():
    assert mf.__all__ == sorted(mf.__all__)
    for name in mf.__all__:
        value = getattr(mf, name)
        assert value.__name__ == name
        assert value.__module__.startswith("moola_features.")
        assert value.__doc__
    assert set(mf.__all__) <= set(dir(mf))
    with pytest.raises(AttributeError, match="module 'moola_features' has no attribute 'Bar'"):
        mf.Bar  # noqa: B018


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_imports_what_training_needs(path):
    assert not imported(path) & {"torch", "moola_train", "sklearn", "pickle"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").glob("*.py")), ids=lambda x: x.stem)
def test_kernels_import_numpy_and_numba_only(path):
    if path.stem == "compiled":
        return  # it owns Numba's options and the cache, and so knows files
    allowed = {"__future__", "math", "numpy", "numba", "moola_features"}
    if path.stem == "prefetch":
        allowed |= {"llvmlite", "typing"}  # an instruction that Numba has no word for
    assert imported(path) <= allowed
    text = path.read_text(encoding="utf-8")
    assert all(
        line.startswith("from moola_features.kernels")
        for line in text.splitlines()
        if line.startswith(("from moola_features", "import moola_features"))
    )


def test_every_call_of_zarr_is_in_one_module():
    users = {path.stem for path in PACKAGE.rglob("*.py") if "zarr" in imported(path)}
    assert users == {"writer"}
