"""The report card of a user's own token mixer or backbone: laws, and figures beside built-in ones."""
