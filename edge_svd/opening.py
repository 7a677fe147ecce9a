"""Open a model of any kind: what MODEL on the command line may name."""

from __future__ import annotations

from edge_svd.encoders.opened import OpenedEncoder, encoder_family, open_encoder
from edge_svd.models import OpenedModel, open_model

Opened = OpenedModel | OpenedEncoder


def open_any(name: str) -> Opened:
    """A decoder as `models.open_model` opens it, or an encoder; InputError, one sentence, if that cannot be done."""
    return open_encoder(name) if encoder_family(name) else open_model(name)
