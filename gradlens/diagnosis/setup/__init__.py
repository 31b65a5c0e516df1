"""Findings of the kind ``setup``: faults that facts show exactly, with one file per part of the set-up."""
