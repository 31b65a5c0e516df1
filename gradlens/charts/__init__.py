"""Data prepared for drawing, shared by figures, terminals and pages; numpy only."""
