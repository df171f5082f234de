"""The `hearth` command: one small file a subcommand."""
