"""The demo in a browser: `lion demo`, or `serve` from Python. Only `page.py` needs Gradio, of the extra `demo`.

`uploads.py` opens what strangers send, `answering.py` asks the model and streams, `marks.py` draws on the picture,
`examples.py` has what can be tried, `page.py` is the page and `server.py` the server around it.
"""

from .server import ServerSettings, serve

__all__ = ["ServerSettings", "serve"]
