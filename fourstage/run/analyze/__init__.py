"""`fourstage analyze`: joins networks, data, an analysis and its page; one file for each analysis."""
