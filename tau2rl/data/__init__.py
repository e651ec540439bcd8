"""Rows, encoding, the rollout filter and task sampling: what is trained on, before it is trained on."""
