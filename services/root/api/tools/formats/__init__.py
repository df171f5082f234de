"""Forms in which models write tool calls, one file each; `../discovery.py` finds a template's."""
