"""Coverage-guided fuzzing of everything that reads foreign bytes: see targets.py; `make fuzz SECONDS=60` runs it."""
