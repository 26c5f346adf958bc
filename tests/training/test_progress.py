"""Bars of progress on a terminal and in a log."""

import io
import re
import time
from itertools import count

import pytest
import torch
from one_cycle import train_one_cycle
from torch import nn

from hf_pvt.training.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(stream: io.StringIO) -> str:
    with ProgressBar(range(50), "digits", unit="step", file=stream, mininterval=0) as bar:
        for _ in bar:
            bar.set_postfix(loss="0.5")
    return stream.getvalue()


def test_a_log_gets_one_line() -> None:
    """Without a carriage return that would rewrite it; with the number of steps and the last loss."""
    text = drawn(io.StringIO()).strip("\r\n")
    assert "\r" not in text and "\n" not in text
    assert text.startswith("digits: 100%") and "50/50" in text and "loss=0.5" in text


def test_a_terminal_gets_all() -> None:
    assert drawn(Terminal()).count("\r") >= 100


def test_demos_say_how_long_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    """By the usual step: one that waits for something else says nothing of the others."""
    model, calls = nn.Linear(3, 1), count()

    def loss_of_batch() -> torch.Tensor:
        if next(calls) == 5:
            time.sleep(1)
        return model(torch.ones(4, 3)).square().mean()

    loss = loss_of_batch()
    train_one_cycle(model, loss_of_batch, steps=12, title="training")
    captured = capsys.readouterr()
    assert re.fullmatch(r"training: about 0 s for 12 steps on this machine\n", captured.out)
    assert captured.err.count("training") == 1 and "12/12" in captured.err
    assert not model.training and loss_of_batch() < loss
