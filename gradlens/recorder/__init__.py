"""Record, in anyone's training loop, where a network's gradient goes."""

from gradlens.recorder.recorder import Recorder, record

__all__ = ["Recorder", "record"]
