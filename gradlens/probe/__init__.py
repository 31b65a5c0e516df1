"""A few seconds before training: measure a model at initialisation, and judge it."""
