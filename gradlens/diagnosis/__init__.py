"""What is wrong with a run: one file per kind of finding; numpy only."""
