"""Scheduling of sequences and pages to steps. Pure state."""
