"""The report of a run: one offline HTML page, and the same data as CSV, JSON and Parquet."""
