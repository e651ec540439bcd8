"""Carries a run out: as a Ray job on a cluster or a head of our own, or in this process. Only a path crosses over."""
