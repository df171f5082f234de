"""Where workers are looked for."""
