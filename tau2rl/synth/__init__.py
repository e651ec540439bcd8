"""Verified tasks made from a domain's database: rules -> affordances -> composed tasks -> proofs -> tau2's Task JSON."""
