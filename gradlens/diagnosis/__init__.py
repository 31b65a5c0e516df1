"""The diagnosis of runs, with one file per kind of finding; numpy only."""
