"""Runs training programs on the machines a person owns, and moves them between machines by checkpoint."""

__version__ = "0.1.0"
