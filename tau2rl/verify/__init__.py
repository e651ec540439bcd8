"""Judgments about kept episodes: which of k attempts to take without an oracle, and who is to blame where none succeeded."""
