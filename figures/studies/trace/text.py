"""Tokens and prompts as figures and tables write them."""

from __future__ import annotations


def visible(text: str) -> str:
    """Make line breaks, tabs and all-space tokens visible."""
    inner = text.replace("\n", "⏎").replace("\t", "⇥")
    return inner.replace(" ", "␣") if inner.strip() != inner and not inner.strip() else inner.strip()
