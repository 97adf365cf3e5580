"""What this software costs on a machine: beside others in turns, station by station, and as the work grows."""
