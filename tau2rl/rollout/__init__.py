"""THE episode loop, and many of them at once. Evaluation, rejection sampling and both trainers run exactly this code."""
