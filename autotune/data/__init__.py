"""Presets that ship with the package, one `<device key>.json` each, written by the tuner alone; see `presets.py`."""
