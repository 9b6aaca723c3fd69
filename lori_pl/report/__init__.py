"""The report: what folders of results, runs and analyses hold, as one HTML file with its pictures."""
