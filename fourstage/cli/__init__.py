"""The command line: a recipe by name, paths, and single values to change.

A verb imports torch when it runs, so that `--help` is fast.
"""

from fourstage.cli.entry import main, parse

__all__ = ["main", "parse"]
