"""Post-train small open models into multi-turn tool-use agents on tau2-bench."""

__version__ = "0.1.0"
