"""An HTTP service for LION: chat completions in OpenAI's format, and captions, answers, boxes and tags.

Reading order: `settings.py`, `queue.py` (batches), `images.py`, `model.py` (a batch on the model), `service.py` (all of
them together), `schemas.py` and `chat.py` (requests and responses), `app.py` (routes), and the two engines that run the
app: `local.py` (one process with uvicorn) and `ray_serve.py` (Ray Serve).
"""
