"""A report on detections: ``python tools/report.py DATA RESULTS [RESULTS]``."""

from resdet.cli import report

if __name__ == "__main__":
    report()
