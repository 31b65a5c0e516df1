"""Views of runs, diagnoses and comparisons for a terminal, with Rich."""
