from __future__ import annotations

import pytest
import torch

from edge_svd.compute_device import VARIABLE, compute_device, computing
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


def test_a_model_goes_back_to_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside another stretch of computing it stays on the card: moving a large model costs seconds."""

    class Moved:
        device = torch.device("cpu")

        def to(self, device: torch.device) -> None:
            self.device = torch.device(device)

    monkeypatch.setattr("edge_svd.compute_device.compute_device", lambda: torch.device("cuda"))
    model = Moved()
    with computing(model) as outer:
        with pytest.raises(KeyError), computing(model) as inner:
            assert outer == inner == model.device == torch.device("cuda")
            raise KeyError
        assert model.device.type == "cuda"
    assert model.device.type == "cpu"
