"""An HTTP service for LION: chat completions in OpenAI's format, and captions, answers, boxes and tags.

Reading order: `settings.py` and `errors.py`; `queue.py` (batches), `images.py`, `model.py` (a batch on the model) and
`service.py`, which joins them; `schemas.py`, `checks.py` and `chat.py` (requests and responses); `gate.py` and `app.py`
(routes); and the two engines that run the app, `local.py` (one process with uvicorn) and `ray_serve.py` (Ray Serve).
"""
