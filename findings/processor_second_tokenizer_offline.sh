#!/bin/sh
# Offline, a processor from the Hub cache gets its first tokenizer twice; the second, in a subfolder, is not read.
#
# Expectation: If all files of a repository are in the cache, it loads with HF_HUB_OFFLINE=1 just like a local
# folder.
#
# Behavior: InstructBLIP's processor keeps the tokenizer of its Q-Former in `qformer_tokenizer/`. If the processor
# is loaded offline by repository name, the Q-Former gets the language model's tokenizer: a different vocabulary
# without [CLS] and [SEP], and no error. Loading the same files by path works. Loading by name also works if the
# subfolder contains a `config.json` with the model type of the tokenizer.
#
# Observed on 2026-11-28 with Python 3.11 and torch 2.13.0, transformers 5.24.0, pillow 13.0.0:
#   by path:                           BertTokenizer [2, 5, 6, 3]
#   by name, offline:                  TokenizersBackend [5, 4]
#   by name, offline, with the config: BertTokenizer [2, 5, 6, 3]
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
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
