"""The table of stages, what identifies their results, and where these lie."""
