"""The demo as a Space. The variable `LION_MODEL` names a checkpoint; by default it is the package's small example."""

import os

from transformers_lion import Lion
from transformers_lion.demo import ServerSettings, serve
from transformers_lion.demo.server import examples_of, sentence_about

if __name__ == "__main__":
    model = os.environ.get("LION_MODEL") or None
    settings = ServerSettings(
        host="0.0.0.0",  # a Space's own address; Gradio's variables for it are not read
        port=7860,
        name=sentence_about(model),
        examples=examples_of(model, None),
    )
    serve(Lion.from_pretrained(model), settings)
