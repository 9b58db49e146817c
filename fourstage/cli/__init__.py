"""The command line: a recipe by name, where things are, and single values to change.

Imports of torch wait until a verb needs it, so that help is instant.
"""

from fourstage.cli.entry import main, parse

__all__ = ["main", "parse"]
