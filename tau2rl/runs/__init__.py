"""What a run leaves on disk: records, the run folder, and what the run stood on. Nothing here knows what a stage does."""
