"""The real servers on one machine, from PyPI packages alone: `btm up`, `down`, `status`."""
