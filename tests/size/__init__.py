"""Folders as the hub has them: the true Qwen2.5 vocabulary, random weights, any size."""
