"""What a run is read by: one offline page, and its CSV and JSON twins."""

from autocompress.report.data_files import write_tables
from autocompress.report.page import write_page

__all__ = ["write_page", "write_tables"]
