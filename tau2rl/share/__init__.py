"""What is handed to others: runs in the layouts of other tools and back, a report in one file, a model card."""
