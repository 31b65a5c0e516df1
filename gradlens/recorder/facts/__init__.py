"""The facts of a training (``docs/facts.md``): what finds them, and what collects each kind of fact."""
