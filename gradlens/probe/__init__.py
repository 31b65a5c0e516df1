"""Measure and judge a model at initialisation, in a few seconds before training."""
