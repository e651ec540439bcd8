"""Conversations, results and curves for people: an index beside a run's records, what is shown of it, and the web app."""
