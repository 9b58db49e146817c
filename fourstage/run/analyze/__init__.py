"""`fourstage analyze`: joins subjects, data, an analysis and its page; one file for each analysis."""
