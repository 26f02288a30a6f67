"""Lay the pages of the documentation site out in ``build/docs``: those of ``docs/``, two files of the project, all docstrings.

``make docs`` runs it before the site is built (``mkdocs.yml``).
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md")
MODULES = (
    "oasis_monai.transforms.array",
    "oasis_monai.transforms.dictionary",
    "oasis_monai.transforms.preprocessing",
    "oasis_monai.transforms.augmentation",
    "oasis_monai.networks.losses",
    "oasis_monai.networks.registration",
    "oasis_monai.networks.warp",
    "oasis_monai.segmentation.loa",
    "oasis_monai.segmentation.fusion",
    "oasis_monai.segmentation.agreement",
    "oasis_monai.evaluation.metrics",
    "oasis_monai.data.phantom",
)
"""What other projects may want, beside the names of ``oasis_monai`` itself."""


def assemble(root: Path, pages: Path) -> None:
    """Write the pages anew.

    Args:
        root: the project.
        pages: the folder to write; what is there is removed.
    """
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(root / "docs", pages, ignore=shutil.ignore_patterns("site"))
    (pages / "README.md").rename(pages / "index.md")
    for name in PROJECT:
        text = (root / name).read_text(encoding="utf-8")
        (pages / name).write_text(re.sub(r"\]\(docs/", "](", text), encoding="utf-8")
    project = re.compile(rf"\]\((\.\./)+({'|'.join(map(re.escape, PROJECT))})")
    for page in pages.rglob("*.md"):
        up = "../" * (len(page.relative_to(pages).parts) - 1)
        text = page.read_text(encoding="utf-8")
        page.write_text(project.sub(rf"]({up}\2", text).replace("README.md)", "README.md)"), encoding="utf-8")
    (pages / "reference" / "docstrings.md").write_text(docstrings(), encoding="utf-8")


def docstrings() -> str:
    """The page of all docstrings, in the form that mkdocstrings reads."""
    from oasis_monai import _PUBLIC

    names = sorted((name, f"oasis_monai.{module}.{name}") for module, names in _PUBLIC.items() for name in names)
    public = [f"::: {path}\n    options:\n      heading_level: 3\n" for _, path in names]
    modules = [f"::: {path}\n    options:\n      heading_level: 2\n" for path in MODULES]
    return "\n".join(["# Docstrings", "", "## Names of `oasis_monai`", "", *public, *modules])


if __name__ == "__main__":
    assemble(Path(__file__).parents[2], Path(sys.argv[1]))
