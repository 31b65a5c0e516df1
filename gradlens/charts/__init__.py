"""Data ready to be drawn, for figures, terminals and pages alike; numpy only."""
