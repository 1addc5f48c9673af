"""For mkdocstrings: docstrings name classes as ``:class:`Spec```; here these become links to the API reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

import fldd_lightning

_ROLE = re.compile(r":(?:class|func|meth|attr|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites the roles of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(_link, obj.docstring.value)


def _link(match: re.Match[str]) -> str:
    first, _, rest = match.group(1).removeprefix("fldd_lightning.").partition(".")
    if first in fldd_lightning.__all__:
        name = f"{first}.{rest}" if rest else first
        return f"[`{name}`][fldd_lightning.{name}]"
    last = match.group(1).rpartition(".")[2]
    return f"[`{last}`][fldd_lightning.{last}]" if last in fldd_lightning.__all__ else f"`{last}`"
