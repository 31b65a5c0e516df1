"""Models that several processes train together: what the ranks send each other, and which part each of them has."""
