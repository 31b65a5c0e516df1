"""Record, in anyone's training loop, where a network's gradient goes."""

from gradlens.recorder.layers import all_leaves, with_norms
from gradlens.recorder.recorder import Recorder, record
from gradlens.recorder.schedule import log_spaced

__all__ = ["Recorder", "all_leaves", "log_spaced", "record", "with_norms"]
