"""One proxy for all the content of a fleet."""

__version__ = "0.1.0"
