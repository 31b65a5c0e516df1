"""Where the runs of an experiment are carried out: one file per engine."""
