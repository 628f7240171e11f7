"""The command line: commands, options, tables and progress."""
