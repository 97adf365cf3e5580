"""Data sets: readers that put annotations into arrays, image decoding, augmentation, and batches for the loaders."""
