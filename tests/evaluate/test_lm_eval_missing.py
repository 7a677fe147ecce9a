"""What `python -m edge_svd.evaluate.lm_eval` says without lm-eval."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from edge_svd.evaluate import lm_eval


def test_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "lm_eval" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(SystemExit) as ended:
        lm_eval.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err == "edge-svd: This command needs lm-eval; install it with: pip install 'edge-svd[lm-eval]'.\n"
