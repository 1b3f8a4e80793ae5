"""The version of tersor."""

__version__ = "0.1.0"
