"""Commands of the command line that work on the store alone."""
