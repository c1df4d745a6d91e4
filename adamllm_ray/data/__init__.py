"""Records: where they come from, what a row is, and the run folder they live in."""
