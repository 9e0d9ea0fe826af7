"""What the command line does, one file for each command that is more than a call. `cli.py` parses and calls these."""
