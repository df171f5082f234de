"""The worker service: holds one shard of a model for a root, and computes its part of each step."""
