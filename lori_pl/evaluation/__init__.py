"""Metrics, intervals, records and reports."""
