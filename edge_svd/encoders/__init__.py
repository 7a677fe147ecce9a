"""Sentence encoders of the BERT kind: their description, how they are opened, and what they give for a text."""

from __future__ import annotations
