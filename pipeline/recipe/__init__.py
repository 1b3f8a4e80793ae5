"""Recipes: settings, read from YAML."""
