"""Export: a candidate becomes a folder of files that run anywhere, and the files are measured again."""
