"""The command line: one small file per command. The work itself is in the other packages."""
