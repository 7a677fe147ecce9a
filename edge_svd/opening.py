"""Open a model of any kind: what MODEL on the command line may name."""

from __future__ import annotations

from edge_svd.encoders.opened import OpenedEncoder, encoder_family, open_encoder
from edge_svd.errors import InputError
from edge_svd.models import OpenedModel, open_model
from edge_svd.rotation import rotated

Opened = OpenedModel | OpenedEncoder


def open_decoder(name: str, rotate: bool) -> OpenedModel:
    """What `models.open_model` opens, rotated if that is asked for; InputError if either cannot be done."""
    opened = open_model(name)
    return rotated(opened) if rotate else opened


def open_any(name: str, rotate: bool = False) -> Opened:
    """A decoder as `models.open_model` opens it, or an encoder; InputError, one sentence, if that cannot be done, or
    if it is to be rotated and cannot be."""
    if not encoder_family(name):
        return open_decoder(name, rotate)
    if rotate:
        raise InputError("--rotate is for models that write text; leave it out for an encoder.")
    return open_encoder(name)
