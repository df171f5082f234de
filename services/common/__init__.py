"""Shared by both services: errors, channels, settings, metrics, logging."""
