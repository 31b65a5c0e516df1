"""Record the gradients of a model in any training loop."""

from gradlens.recorder.layers import all_leaves, with_norms
from gradlens.recorder.recorder import Recorder
from gradlens.recorder.recording import record
from gradlens.recorder.schedule import log_spaced

__all__ = ["Recorder", "all_leaves", "log_spaced", "record", "with_norms"]
