"""The parts of both services: errors, channels, settings, metrics, logging."""
