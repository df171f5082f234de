"""What both services share: errors, channels, settings, metrics, logging."""
