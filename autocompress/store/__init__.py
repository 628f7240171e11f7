"""The run store: one SQLite file with one writer, read back as tables."""
