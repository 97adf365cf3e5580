"""The protocols that turn detections into figures, and the records that keep the figures."""
