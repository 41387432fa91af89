"""Health of a run: statistics, alarms, probes on the side."""
