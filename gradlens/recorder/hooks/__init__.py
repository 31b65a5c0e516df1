"""The hooks on modules, gradients, optimizers and scalers: where they are placed and when they are called."""
