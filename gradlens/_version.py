"""The version of gradlens, where every part of it may look it up."""

__version__ = "0.2.0"
