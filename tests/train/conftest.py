"""What several test files of the training layer ask for."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
import torch

from moola_train import cli
from tests.train.command_line import Moola, Outcome


@pytest.fixture
def moola(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Moola]:
    """Run the command line inside this process."""
    before, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli, "keep_freed", lambda: False)  # this process is not the program's own

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["moola-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        return Outcome(int(caught.value.code or 0), out, err)

    yield run
    signal.signal(signal.SIGTERM, before)
    torch.set_num_threads(threads)
