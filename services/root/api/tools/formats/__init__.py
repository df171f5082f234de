"""Forms in which models write tool calls, one file each; `found.py` finds a template's."""
