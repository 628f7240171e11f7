"""One trial: teacher, student, compression recipe, checkpoints and measured candidates."""
