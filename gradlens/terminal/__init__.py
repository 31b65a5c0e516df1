"""The same facts for a terminal, with Rich."""
