"""Heads: from features to one score an answer. One file each, one dict line, one contract battery.

A head is a small `torch.nn.Module`; it knows nothing of language models.
"""
