"""The loop that runs requests: steps, sampling, text."""
