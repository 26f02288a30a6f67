"""A griffe extension: roles of docstrings (``:func:`name```) become plain code, which the site links where it can."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):`[~.]*([^`]*)`")


class Roles(griffe.Extension):
    """Rewrite the docstring of everything that is documented."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
