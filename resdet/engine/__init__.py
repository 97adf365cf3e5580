"""What runs the nets: configs, mmengine's runner and hooks, several processes. Nothing below imports mmengine."""
