"""The report: one self-contained HTML page about a run or a study."""

from oasis_monai.evaluation.report.page import write_report
from oasis_monai.evaluation.report.run import StudyParts, read_run

__all__ = ["StudyParts", "read_run", "write_report"]
