"""What theory says of gradients at initialisation; numpy only."""
