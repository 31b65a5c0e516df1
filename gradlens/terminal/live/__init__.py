"""Full-screen views of a run that is being written."""
