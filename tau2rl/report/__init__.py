"""From records to numbers that can be trusted: pass@k, pass^k, intervals, paired tests, the report, and sinks for curves."""
