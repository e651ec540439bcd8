"""Verified tasks, made from a database (telecom: from problems): rules -> requests -> composed tasks -> proofs -> Task JSON."""
