"""The study: stages built once, notebooks run by papermill, the report."""

from . import parallel, process_stages, report, stages

__all__ = ["parallel", "process_stages", "report", "stages"]
