"""Chunk files mapped side by side: nothing copied, nothing leaked, nothing damaged let in."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from moola_features.errors import StoreError
from moola_features.store.mapping import map_files

PAGE = mmap.PAGESIZE
SIZE = 3 * PAGE


@pytest.fixture
def files(tmp_path) -> list[Path]:
    rng = np.random.default_rng(3)
    paths = [tmp_path / f"{index}" for index in range(5)]
    for path in paths:
        rng.integers(0, 256, SIZE, dtype=np.uint8).tofile(path)
    return paths


def lines_of(path: Path) -> int:
    """How many mappings of a file this process has."""
    return Path("/proc/self/maps").read_text().count(str(path))


def test_one_array_over_all_files(files):
    mapped = map_files(files, SIZE)
    expected = np.concatenate([np.fromfile(path, np.uint8) for path in files])
    np.testing.assert_array_equal(mapped, expected)
    assert mapped.dtype == np.uint8
    np.testing.assert_array_equal(map_files(files[::-1], SIZE)[:SIZE], expected[-SIZE:])


def test_nothing_is_copied_and_nothing_can_be_written(files):
    mapped = map_files(files, SIZE)
    assert lines_of(files[0]) == 1
    base = mapped
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(getattr(base, "obj", base), mmap.mmap)
    assert not mapped.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        mapped.flags.writeable = True


def test_no_files():
    assert map_files([], SIZE).shape == (0,)


def test_deleted_and_replaced_files_keep_serving(files):
    mapped = map_files(files, SIZE)
    expected = mapped.copy()
    os.unlink(files[0])
    os.replace(files[2], files[1])
    np.testing.assert_array_equal(mapped, expected)


def test_lives_as_long_as_a_view_of_it(files):
    view = map_files(files, SIZE)[PAGE + 1 :: 7]
    expected = np.concatenate([np.fromfile(path, np.uint8) for path in files])[PAGE + 1 :: 7]
    gc.collect()
    assert lines_of(files[4]) == 1
    np.testing.assert_array_equal(view, expected)
    del view
    gc.collect()
    assert lines_of(files[4]) == 0


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, SIZE + PAGE])
def test_another_size(files, size):
    os.truncate(files[3], size)
    with pytest.raises(StoreError) as caught:
        map_files(files, SIZE)
    assert str(caught.value) == (
        f"chunk file {files[3]} has {size} bytes, not {SIZE}; the store is damaged, "
        "rebuild it with --force"
    )


def test_missing(files):
    os.unlink(files[3])
    with pytest.raises(StoreError, match=r"chunk file .*/3 is missing; rebuild .* with --force"):
        map_files(files, SIZE)


def test_no_file(files):
    with pytest.raises(StoreError, match=r"0/c cannot be opened: Not a directory; mend"):
        map_files([*files, files[0] / "c"], SIZE)
    os.unlink(files[1])
    files[1].mkdir()
    with pytest.raises(StoreError, match=r"chunk file .*/1 (has|cannot be)"):
        map_files(files, SIZE)


def test_part_of_a_page(files):
    with pytest.raises(StoreError, match="chunks of 100 bytes are not whole pages"):
        map_files(files, 100)


def test_nothing_is_left_open(files):
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        map_files(files, SIZE)
    missing = files[0].with_name("missing")
    for _ in range(50):
        with pytest.raises(StoreError):
            map_files([*files, missing], SIZE)
        with pytest.raises(StoreError):
            map_files(files, SIZE - PAGE)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == opened
    assert lines_of(files[0]) == 0
