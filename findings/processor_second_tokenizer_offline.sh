#!/bin/sh
# Offline, a processor from the Hub's cache has its first tokenizer twice: the second one, in a subfolder, is not read.
#
# Guess: a repository whose files are all in the cache loads with HF_HUB_OFFLINE=1 as its folder does.
#
# Behaviour: InstructBLIP's processor keeps the tokenizer of its Q-Former in `qformer_tokenizer/`. Loaded by the
# repository's name, offline, the Q-Former gets the language model's tokenizer: another vocabulary and no [CLS]
# and [SEP], without an error. With the path of the same files it is
# right, and so it is by name if a `config.json` with the tokenizer's model type is in the subfolder.
#
# Seen on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, pillow 13.0.0:
#   by path:                           BertTokenizer [2, 5, 6, 3]
#   by name, offline:                  TokenizersBackend [5, 4]
#   by name, offline, with the config: BertTokenizer [2, 5, 6, 3]
#
# Exits with 0 as long as this holds, and with another status once the behaviour changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 transformers==5.24.0 pillow==13.0.0
cd "$folder"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
export HF_HUB_CACHE="$folder/cache"
venv/bin/python -I - <<'PYTHON'
import json
import os

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipProcessor,
    PreTrainedTokenizerFast,
)

REVISION = "0" * 40
repository = os.path.join(os.environ["HF_HUB_CACHE"], "models--someone--tiny")
snapshot = os.path.join(repository, "snapshots", REVISION)
os.makedirs(os.path.join(repository, "refs"))
with open(os.path.join(repository, "refs", "main"), "w") as file:
    file.write(REVISION)

words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "dog": 3, "cat": 4, "a": 5}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
first = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
with open("vocab.txt", "w") as file:
    file.write("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]))
second = BertTokenizer(vocab="vocab.txt")
InstructBlipProcessor(BlipImageProcessorPil(), first, second, num_query_tokens=2).save_pretrained(snapshot)
InstructBlipConfig(text_config={"model_type": "t5"}).save_pretrained(snapshot)


def study(name, source):
    tokenizer = InstructBlipProcessor.from_pretrained(source).qformer_tokenizer
    ids = tokenizer("a cat").input_ids
    print(f"{name:<35}{type(tokenizer).__name__} {ids}")
    return ids


right = second("a cat").input_ids
assert study("by path:", snapshot) == right  # the control
assert study("by name, offline:", "someone/tiny") == first("a cat").input_ids != right
with open(os.path.join(snapshot, "qformer_tokenizer", "config.json"), "w") as file:
    json.dump({"model_type": "bert"}, file)
assert study("by name, offline, with the config:", "someone/tiny") == right  # a control
PYTHON
