"""The engine: the loop that runs requests, from steps and sampling to text."""
