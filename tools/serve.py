"""A trained detector as a web page and over HTTP: ``python tools/serve.py best.pth``."""

from resdet.cli import serve

if __name__ == "__main__":
    serve()
