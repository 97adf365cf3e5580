"""Every trick of speed for CPUs, and nothing else: the nets read like the figures without it."""
