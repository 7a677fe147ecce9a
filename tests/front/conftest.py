from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def environment(cache: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's cache nor the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
