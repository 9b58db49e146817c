"""Pages of `fourstage analyze`: one file for each analysis, one self-contained page for each call."""
