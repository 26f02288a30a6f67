"""Public data sets that can be downloaded: one archive each, with its checksum, licence and citation. Nothing here is read from
data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from oasis_monai.errors import ConfigError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MSD_PAGE = "http://medicaldecathlon.com"


@dataclass(frozen=True)
class Source:
    """One archive of a data set.

    Args:
        name: what it is called.
        url: of the archive; its last part is the file's name.
        md5: checksum as published, 32 hex digits.
        page: where a person finds it.
        licence, citation: shown before anything is fetched, and kept beside the data.
    """

    name: str
    url: str
    md5: str
    page: str
    licence: str
    citation: str

    @property
    def file(self) -> str:
        """The archive's file name."""
        return urlsplit(self.url).path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folder its content goes to: the file name without its ending."""
        return next(self.file.removesuffix(end) for end in sorted(ARCHIVES, key=len, reverse=True) if self.file.endswith(end))


_ZENODO = "https://zenodo.org/records/8026660"
_PROMISE12 = {
    "page": _ZENODO,
    "licence": "research use only, no redistribution; results must cite the paper",
    "citation": "Litjens et al., Evaluation of prostate segmentation algorithms for MRI: the PROMISE12 challenge. Medical Image "
    "Analysis 18 (2014) 359-373, doi 10.1016/j.media.2013.12.002",
}
SOURCES = {
    "promise12": Source("PROMISE12", f"{_ZENODO}/files/training_data.zip", "f6d23994117c989daf07e5291edd0aea", **_PROMISE12),
    "promise12-test": Source(
        "PROMISE12 test cases", f"{_ZENODO}/files/test_data.zip", "823ef560f4a54083348e58d67403e4bb", **_PROMISE12
    ),
}


def find_source(name: Any, mirror: Mapping[str, Any] | None = None) -> Source:
    """The data set ``name``: a key of :data:`SOURCES`, or a task of the Medical Segmentation Decathlon, whose addresses and
    checksums are MONAI's (:class:`monai.apps.DecathlonDataset`).

    Args:
        mirror: ``url``: the archive somewhere else, or a folder with a file of the archive's name; ``md5``: another checksum.

    Raises:
        ConfigError: no such data set, or a mirror that is none.
    """
    mirror = {} if mirror is None else mirror
    if not isinstance(mirror, Mapping):
        raise ConfigError("download", "url and md5", mirror)
    if isinstance(name, str) and name in SOURCES:
        return _mirrored(SOURCES[name], mirror)
    from monai.apps.datasets import DecathlonDataset

    if not isinstance(name, str) or name not in DecathlonDataset.resource:
        known = ", ".join([*SOURCES, *DecathlonDataset.resource])
        remedy = "add data=promise12 or data=hippocampus, msd=TASK, or write data.source=NAME into your data set's YAML file"
        raise ConfigError("data.source", f"a data set to download, one of {known}", name, remedy)
    citation = "Antonelli et al., The Medical Segmentation Decathlon. Nature Communications 13 (2022) 4128, "
    citation += "doi 10.1038/s41467-022-30695-9"
    address, md5 = DecathlonDataset.resource[name], DecathlonDataset.md5[name]
    found = Source(f"Medical Segmentation Decathlon {name}", address, md5, MSD_PAGE, "CC-BY-SA 4.0", citation)
    return _mirrored(found, mirror)


def _mirrored(source: Source, mirror: Mapping[str, Any]) -> Source:
    unknown = sorted(set(mirror) - {"url", "md5"})
    if unknown:
        raise ConfigError(f"download.{unknown[0]}", "url or md5", "an unknown key", "correct or remove it")
    url, md5 = mirror.get("url"), mirror.get("md5")
    if md5 is not None:
        if not isinstance(md5, str) or not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
            raise ConfigError("download.md5", "32 hex digits", md5)
        source = replace(source, md5=md5.lower())
    if url is not None:
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError("download.url", "an address that starts with http:// or https://", url)
        source = replace(source, url=url if url.endswith(ARCHIVES) else f"{url.rstrip('/')}/{source.file}")
    return source
