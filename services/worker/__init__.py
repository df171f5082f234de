"""The worker service: holds a shard of a model for one root and computes its part of each step."""
