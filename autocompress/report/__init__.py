"""The report of a run: one offline HTML page, and the same data as CSV, JSON and Parquet."""

from autocompress.report.data_files import write_tables
from autocompress.report.page import write_page

__all__ = ["write_page", "write_tables"]
