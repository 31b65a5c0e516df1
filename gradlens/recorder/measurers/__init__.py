"""What measures a metric beyond the gradient norms that every row has, with one file per kind of measurement."""
