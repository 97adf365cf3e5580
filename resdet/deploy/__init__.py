"""Putting a detector to work elsewhere: ONNX and torch.export files, and detection without torch.

Nothing is imported here: :mod:`resdet.deploy.onnx_detector` runs where torch is not installed.
"""
