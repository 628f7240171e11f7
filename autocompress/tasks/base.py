from autocompress.task import Logits, Split, Splits, Targets, Task, as_heads  # noqa
