"""Files that ship with the package, read through importlib.resources; SOURCE.md names each author and licence."""
