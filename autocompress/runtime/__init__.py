"""Serving of exported models: several models of one run in memory, switched under a latency budget.

It needs numpy and onnxruntime as the exported pipeline does, and imports no torch.
"""
