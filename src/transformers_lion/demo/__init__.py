"""The demo in a browser: `lion demo`, or `serve` from Python. Gradio, of the extra `demo`, is imported by `page.py` alone.

`uploads.py` opens what strangers send, `answering.py` asks the model and streams, `marks.py` draws, `page.py` is the page
and `server.py` the server around it.
"""

from .server import serve

__all__ = ["serve"]
