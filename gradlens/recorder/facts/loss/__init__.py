"""The facts that the graph of a loss shows: what reads the graph, and one file per kind of fact in it."""
