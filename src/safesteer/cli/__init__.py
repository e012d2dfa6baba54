"""The command line: one small file per command, no logic. What a command does is called from it."""
