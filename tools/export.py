"""A trained detector as an ONNX file or a program of torch.export: ``python tools/export.py best.pth model.onnx``."""

from resdet.cli import export

if __name__ == "__main__":
    export()
