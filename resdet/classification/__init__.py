"""Image classification (section 4.1 of the paper): the task that pre-trains the backbones of the detectors."""
