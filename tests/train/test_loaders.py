"""Batches hold the store's windows to the bit, in an order that resumes, on either placement."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import moola_features as mf
from moola_features.windows import Windows
from moola_train.errors import LoaderError
from moola_train.loaders import WindowLoader
from moola_train.order import BatchOrder
from moola_train.table import Batch, DeviceTable, choose_placement, compact
from tests.markets import CHUNK, as_bits, run_python, walk, write
from tests.train.copies import HeedlessCopyStream, HeldCopyStream, gather_threads

PLACEMENTS = ["device", "host"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> mf.Store:
    """Two chunk files, three segments."""
    folder = tmp_path_factory.mktemp("loaders")
    bars = walk(CHUNK + 3_000, gaps=[20_000, CHUNK + 2_000])
    mf.build(write(bars, folder / "bars.parquet"), folder / "bars.zarr")
    opened = mf.open_store(folder / "bars.zarr")
    assert isinstance(opened, mf.Store)
    return opened


@pytest.fixture(scope="module")
def across(store: mf.Store) -> Windows:
    """Windows that begin in one chunk file and end in the next, and some before and after."""
    starts = np.arange(CHUNK - 120, CHUNK + 20, dtype=np.int64)
    return Windows(store.features, starts, 105)


def targets_of(num_windows: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(1)
    return {
        "type": rng.integers(-1, 3, num_windows),
        "pointers": rng.random((num_windows, 2)).astype(np.float32),
        "span": rng.random((num_windows, 105)).astype(np.float32),
        "marked": rng.random(num_windows) < 0.5,
    }


def loader_of(
    windows: Windows | NDArray[np.float32], placement: str = "host", **options: Any
) -> WindowLoader:
    chosen = {
        name: options.pop(name)
        for name in ("seed", "shuffle", "drop_last", "rank", "world_size", "weights", "block")
        if name in options
    }
    order = BatchOrder(len(windows), options.pop("batch_size", 16), **{"seed": 17, **chosen})
    return WindowLoader(windows, order, **{"device": "cpu", "placement": placement, **options})


def indices(loader: WindowLoader) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def assert_same(actual: Batch, expected: Batch) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        np.testing.assert_array_equal(actual[name].numpy(), tensor.numpy())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("which", ["across", "store", "strided"])
def test_values_are_those_of_the_windows_to_the_bit(
    store: mf.Store, across: Windows, placement: str, which: str
) -> None:
    windows = {
        "across": across,
        "store": store.windows(),
        "strided": store.windows(length=30, stride=997),
    }[which]
    loader = loader_of(windows, placement, drop_last=False, batch_size=33)
    seen = []
    for batch in itertools.islice(loader, 40):
        features = batch["features"]
        assert features.is_contiguous()
        assert features.shape == (windows.length, len(batch["index"]), 11)
        for position, row in enumerate(batch["index"].tolist()):
            of_window = np.ascontiguousarray(features[:, position].numpy())
            np.testing.assert_array_equal(as_bits(of_window), as_bits(windows[row].copy()))
        seen += batch["index"].tolist()
    assert len(set(seen)) == min(len(windows), 40 * 33)


def test_windows_across_chunk_files_are_among_those_compared(across: Windows) -> None:
    assert ((across.starts < CHUNK) & (across.starts + across.length > CHUNK)).sum() == 104


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_windows_of_their_own(placement: str) -> None:
    values = np.random.default_rng(3).random((50, 105, 4)).astype(np.float32)
    for batch in loader_of(values, placement):
        together = values[batch["index"].numpy()].transpose(1, 0, 2)
        np.testing.assert_array_equal(batch["features"].numpy(), together)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_targets_come_along_with_their_windows(across: Windows, placement: str) -> None:
    targets = targets_of(len(across))
    for batch in loader_of(across, placement, targets=targets, drop_last=False):
        rows = batch["index"].numpy()
        assert list(batch) == ["features", *targets, "index"]
        for name, target in targets.items():
            assert batch[name].numpy().dtype == target.dtype
            np.testing.assert_array_equal(batch[name].numpy(), target[rows])


@pytest.mark.parametrize("batch_size", [1, 140])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_batch_is_the_callers_own(across: Windows, placement: str, batch_size: int) -> None:
    # Also where turning to time-major moves nothing: one window, or one bar.
    for windows in (across, Windows(across.features, across.starts, 1)):
        loader = loader_of(windows, placement, batch_size=batch_size, slots=1, shuffle=False)
        batches = list(loader)
        for number, batch in enumerate(batches):
            rows = np.arange(number * batch_size, (number + 1) * batch_size)
            together = windows.gather(rows).transpose(1, 0, 2)
            np.testing.assert_array_equal(batch["features"].numpy(), together)
            batch["features"].fill_(0)
            batch["index"].fill_(0)
        np.testing.assert_array_equal(next(iter(loader))["index"].numpy(), np.arange(batch_size))
    assert across.features.any()


@pytest.mark.parametrize("num_slots", [1, 2, 3, 7])
@pytest.mark.parametrize("stream", [HeldCopyStream, HeedlessCopyStream])
def test_late_copies_carry_the_right_windows_because_slots_wait(
    across: Windows, stream: type[HeldCopyStream], num_slots: int
) -> None:
    copies = stream()
    loader = loader_of(across, copies=copies, slots=num_slots, targets=targets_of(len(across)))
    late = threading.Thread(target=copies.let_go, args=[len(loader)])
    if stream is HeldCopyStream:
        late.start()  # else, all copies are made when everything has been gathered
    batches = list(loader)
    if stream is HeedlessCopyStream:
        late.start()
    late.join()
    expected = list(loader_of(across, "device", targets=targets_of(len(across))))
    right = [
        all(torch.equal(batch[name], wanted[name]) for name in wanted)
        for batch, wanted in zip(batches, expected, strict=True)
    ]
    if stream is HeldCopyStream:
        assert all(right)
    else:
        assert sum(right) == num_slots < len(loader)


@pytest.mark.parametrize(
    ("before", "after"), [("host", "host"), ("host", "device"), ("device",) * 2]
)
@pytest.mark.parametrize("options", [{}, {"block": 5}, {"weights": np.arange(140)}])
def test_resuming_yields_exactly_the_batches_that_were_left(
    across: Windows, before: str, after: str, options: dict[str, Any]
) -> None:
    whole = loader_of(across, before, **options)
    whole.set_epoch(2)
    expected = [*list(whole), *list(whole)]  # epochs 2 and 3
    for stopped_after in range(len(whole) + 1):
        first = loader_of(across, before, **options)
        first.set_epoch(2)
        handed_out = list(itertools.islice(first, stopped_after))
        assert len(handed_out) == stopped_after
        state = json.loads(json.dumps(first.state_dict()))
        second = loader_of(across, after, **options)
        second.load_state_dict(state)
        assert second.state_dict() == state
        second.set_epoch(state["epoch"])  # as a loop over epochs does
        rest = [*list(second), *list(second)]
        assert len(rest) == len(expected) - stopped_after
        for actual, wanted in zip(rest, expected[stopped_after:], strict=True):
            assert_same(actual, wanted)


def test_a_state_is_plain_enough_for_a_safe_checkpoint(across: Windows, tmp_path: Path) -> None:
    state = loader_of(across, weights=np.ones(140)).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_epochs_follow_each_other(across: Windows) -> None:
    loader = loader_of(across)
    first, second = indices(loader), indices(loader)
    assert first != second
    assert (loader.epoch, loader.step) == (2, 0)
    loader.set_epoch(1)
    next(iter(loader))
    assert (loader.epoch, loader.step) == (1, 1)
    assert indices(loader) == second  # left early, it begins again
    loader.set_epoch(0)
    assert indices(loader) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 2}, "saved with world_size = 1, here it is 2; resume with the same"),
        ({"seed": 18}, "saved with seed = 17, here it is 18"),
        ({"batch_size": 8}, "saved with batch_size = 16, here it is 8"),
        ({"block": 4}, "saved with block = None, here it is 4"),
        ({"weights": np.ones(140)}, "saved with weights = None"),
    ],
)
def test_a_state_of_another_order_is_refused(
    across: Windows, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoaderError, match=message):
        loader_of(across, **change).load_state_dict(loader_of(across).state_dict())


def test_a_state_of_other_windows_is_refused(across: Windows) -> None:
    state = loader_of(across).state_dict()
    later = Windows(across.features, across.starts + 1, across.length)
    changed = Windows(across.features * np.float32(2), across.starts, across.length)
    shorter = Windows(across.features, across.starts, across.length - 1)
    for other in (later, changed, shorter):
        with pytest.raises(LoaderError, match="belongs to other windows"):
            loader_of(other).load_state_dict(state)


def test_a_store_that_has_grown_is_still_the_same(across: Windows) -> None:
    grown = Windows(
        np.concatenate([across.features, across.features[:9]]), across.starts, across.length
    )
    loader_of(grown).load_state_dict(loader_of(across).state_dict())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, "version 2, this moola reads 1"),
        ({"version": None}, "version None"),
        ({"step": -1}, "at epoch 0, step -1"),
        ({"epoch": "0"}, "at epoch '0', step 0"),
        ({"order": None}, "has "),
        ({"more": 1}, "'more'"),
    ],
)
def test_a_damaged_state_is_refused(across: Windows, damage: dict[str, Any], message: str) -> None:
    loader = loader_of(across)
    with pytest.raises(LoaderError, match=message):
        loader.load_state_dict({**loader.state_dict(), **damage})


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_ranks_share_the_batches_of_one_process(across: Windows, placement: str) -> None:
    alone = loader_of(across, placement, batch_size=12)
    ranks = [
        loader_of(across, placement, batch_size=4, rank=rank, world_size=3) for rank in range(3)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        together = torch.cat([part["features"] for part in parts], dim=1)
        assert torch.equal(together, whole["features"])
    assert len({json.dumps(loader.state_dict()) for loader in ranks}) == 1


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("ending", ["end", "break", "exception", "unstarted"])
def test_no_thread_stays(across: Windows, placement: str, ending: str) -> None:
    loader = loader_of(across, placement)
    threads = threading.active_count()
    if ending == "unstarted":
        iter(loader)
    try:
        for _ in loader:
            if ending == "break":
                break
            if ending == "exception":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert gather_threads() == []
    assert threading.active_count() == threads


def test_an_exception_in_the_gather_thread_surfaces(
    across: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(across)
    gather = Windows.gather
    calls: list[Any] = []

    def fail_later(*arguments: Any, **options: Any) -> Any:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            raise OSError("the disk went away")
        return gather(*arguments, **options)

    monkeypatch.setattr(Windows, "gather", fail_later)
    arrived: list[Batch] = []
    with pytest.raises(OSError, match="the disk went away"):
        arrived.extend(loader)
    assert calls == ["moola-gather"] * 3
    assert loader.step == 2
    assert gather_threads() == []
    monkeypatch.undo()
    assert len(indices(loader)) == len(loader)  # and the loader is none the worse


def test_waiting_is_counted(across: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(across, slots=1)
    batch = loader.order.batch

    def slow(epoch: int, step: int) -> NDArray[np.int64]:
        time.sleep(0.01)
        return batch(epoch, step)

    monkeypatch.setattr(loader.order, "batch", slow)
    began = time.perf_counter()
    assert len(indices(loader)) == 8
    assert 0.06 < loader.waited_seconds <= time.perf_counter() - began


def test_sparse_windows_take_only_their_own_bars_along(store: mf.Store) -> None:
    windows = store.windows()
    few = Windows(store.features, windows.starts[::9_000], windows.length)
    needed = compact(few)
    assert needed.features.shape == (len(few) * 105, 11)
    table = DeviceTable(needed, {}, torch.device("cpu"))
    values = table.gather(torch.arange(len(few)))["features"].numpy()
    np.testing.assert_array_equal(values, few.gather(np.arange(len(few))).transpose(1, 0, 2))
    part = Windows(store.features, windows.starts[100:500], windows.length)
    assert len(compact(part).features) == 400 + 104
    assert np.shares_memory(compact(part).features, store.features)


def test_auto_uses_the_device_if_the_table_fits_there() -> None:
    gpu = torch.device("cuda:0")
    assert choose_placement("auto", gpu, 599, 1_000)[0] == "device"
    placement, reason = choose_placement("auto", gpu, 601 * 10**7, 10**10)
    assert placement == "host"
    assert reason == "a table of 6.01 GB does not fit in 60 % of the 10.00 GB free on cuda:0"
    assert choose_placement("host", gpu, 1, 1_000) == ("host", "as asked for")
    assert choose_placement("device", gpu, 1_001, 1_000)[0] == "device"


def test_auto_says_why(across: Windows) -> None:
    loader = loader_of(across, "auto")
    assert loader.placement == "host"
    assert loader.reason == "the device is the CPU, which reads the table where it is"


def test_a_pause_can_be_taken(across: Windows) -> None:
    copies = HeldCopyStream()
    loader = loader_of(across, copies=copies)
    arriving = iter(loader)
    next(arriving)
    copies.wait_for(3)
    copies.let_go(1)
    copies.wait_for(4)
    copies.let_go(3)
    with loader.paused():
        for _ in range(3):
            next(arriving)
        assert copies.stays_at(4)
    copies.wait_for(5)
    arriving.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "gpu"}, "placement is 'gpu'; give 'auto', 'device' or 'host'"),
        ({"slots": 0}, "slots is 0"),
        ({"device": "meta"}, "device is meta; give cpu or cuda"),
        ({"targets": {"type": np.zeros(3)}}, "'type' has 3 rows for 140 windows"),
        ({"targets": {"index": np.zeros(140)}}, "called 'index'"),
        ({"targets": {"type": np.array(["x"] * 140)}}, "'type' is <U1; give numbers"),
    ],
)
def test_what_cannot_be_served_is_named(
    across: Windows, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoaderError, match=message):
        loader_of(across, **{"placement": "host", **options})


def test_other_windows_than_the_orders_are_refused(across: Windows) -> None:
    with pytest.raises(LoaderError, match="the order is for 9 windows, there are 140"):
        WindowLoader(across, BatchOrder(9, 2, seed=0), device="cpu")
    for values in (np.zeros((9, 3, 2)), np.zeros((9, 3), np.float32), [[[1.0]]] * 9):
        with pytest.raises(LoaderError, match="give float32"):
            WindowLoader(values, BatchOrder(9, 2, seed=0), device="cpu")  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(across: Windows) -> None:
    with pytest.raises(LoaderError, match="device is cuda, and PyTorch sees no GPU; give cpu"):
        loader_of(across, device="cuda")


def test_on_a_cpu_there_are_no_warnings_and_no_workers(store: mf.Store) -> None:
    # In an interpreter of its own: PyTorch gives some warnings only once.
    script = """
import sys
import numpy as np
import moola_features as mf
from moola_train.loaders import WindowLoader
from moola_train.order import BatchOrder

started = []
sys.addaudithook(lambda name, _: started.append(name) if name in STARTS else None)
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen", "os.system"}

windows = mf.open_store(sys.argv[1]).windows(stride=50)
targets = {"type": np.zeros(len(windows), np.int64)}
targets["type"].flags.writeable = False
for placement in ("auto", "host", "device"):
    order = BatchOrder(len(windows), 64, seed=1)
    for batch in WindowLoader(
        windows, order, device="cpu", placement=placement, targets=targets
    ):
        assert not batch["features"].is_pinned()
print(started)
"""
    assert run_python(script, store.path).stdout == "[]\n"
