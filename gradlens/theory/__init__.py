"""Theory of gradients at initialisation; numpy only."""
