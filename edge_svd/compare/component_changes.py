"""What removing single rank components changes of the loss to first order, window by window."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from edge_svd.allocate.first_order import changes_of
from edge_svd.architectures import Site
from edge_svd.calibrate.collect import add_gradients
from edge_svd.decompose import Factorization
from edge_svd.models import OpenedModel


def component_changes(
    opened: OpenedModel,
    factorizations: Mapping[str, Factorization],
    windows: torch.Tensor,
    progress: Callable[[int, int], None],
) -> dict[str, torch.Tensor]:
    """⟨∂L_w/∂W, b_r a_r⟩ of every window w int64 [count, length] and component r, nats per token: fp32 [count, r] by
    matrix.

    Failure where activations or gradients are not finite.
    """
    device = opened.model.device
    narrow = {name: Factorization(f.b.float(), f.a.float(), f.energy).to(device) for name, f in factorizations.items()}
    found = {name: torch.zeros(len(windows), len(f.energy)) for name, f in narrow.items()}
    for row, ids in enumerate(windows.to(device)):

        def keep(site: Site, gradient: torch.Tensor, row: int = row) -> None:
            found[site.name][row] = changes_of(narrow[site.name], gradient).cpu() / (windows.shape[1] - 1)

        add_gradients(opened.model, opened.architecture, opened.sites, keep, ids)
        progress(row + 1, len(windows))
    return found
