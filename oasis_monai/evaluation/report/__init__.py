"""The HTML report of a run or a study: one page without external files.

Public names: :func:`write_report`, :func:`write_suspect_page`, :func:`read_run`, :class:`StudyParts`.
"""

from oasis_monai.evaluation.report.page import write_report, write_suspect_page
from oasis_monai.evaluation.report.run import StudyParts, read_run

__all__ = ["StudyParts", "read_run", "write_report", "write_suspect_page"]
