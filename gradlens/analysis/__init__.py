"""Analyse recorded runs; numpy only."""
