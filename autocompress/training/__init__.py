"""Training: one loop for teachers, students, recovery after pruning and quantization-aware training."""
