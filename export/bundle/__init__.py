"""The folder that ships, and its check."""
