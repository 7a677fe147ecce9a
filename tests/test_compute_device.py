from __future__ import annotations

import pytest
import torch

from edge_svd.compute_device import VARIABLE, compute_device
from edge_svd.errors import InputError


def test_the_device_is_a_card_if_there_is_one_or_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert compute_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setenv(VARIABLE, "cpu")
    assert compute_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:99", "cpu:x"])
def test_what_cannot_compute_here_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(InputError, match="cpu or cuda"):
        compute_device()
