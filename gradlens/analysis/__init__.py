"""Judge what was recorded; numpy only."""
