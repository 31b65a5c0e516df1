"""Long fuzzing of the reader: ``python -m tests.fuzz structure|bytes``."""
