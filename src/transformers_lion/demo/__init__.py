"""Browser demo: run `lion demo`, or call `serve` from Python. Only `page.py` needs Gradio, from the extra `demo`.

`uploads.py` opens uploaded images, `answering.py` queries the model and streams answers, `marks.py` draws on images,
`examples.py` has example inputs, `page.py` is the page, and `server.py` is the server around it.
"""

from .server import ServerSettings, serve

__all__ = ["ServerSettings", "serve"]
