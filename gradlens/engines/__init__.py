"""Engines that carry out the runs of an experiment, one file each; the driver treats all of them alike."""
