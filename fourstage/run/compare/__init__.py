"""`fourstage compare`: a grid of arms and seeds, or finished runs, compared fairly."""
