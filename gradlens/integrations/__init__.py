"""Callbacks that put the recorder into other people's frameworks; each module loads its framework only when imported.

``from gradlens.integrations.transformers import GradlensCallback``; likewise ``lightning``, ``stable_baselines3``,
``skorch`` and ``ultralytics``. ``accelerate`` has ``GradlensTracker``. What a callback does and what a framework
calls when is in ``docs/integrations``.
"""
