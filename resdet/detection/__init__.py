"""The two-stage detector: proposals (RPN), regions (RoI head), their losses, and the net that joins them."""
