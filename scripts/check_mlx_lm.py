#!/usr/bin/env python3
"""Loads a checkpoint that quantize or pack wrote in mlx-lm, on the CPU, and compares logits with this program's.

    scripts/check_mlx_lm.py DIRECTORY [FLASH_MOE]

Needs mlx and mlx-lm (pip install 'mlx[cpu]' mlx-lm, in an environment of its own); says so and succeeds where they are not
there. With the program given, both go on with a text, and must begin with the same tokens; mlx-lm computes in bf16, so they may part later.
"""

import json
import subprocess
import sys

try:
    import mlx.core as mx
    from mlx_lm import load
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

TEXT = "Once upon a time, there was a little"
N_TOKENS = 12
# Tokens that must be the same.
N_SAME = 4


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    directory = sys.argv[1]
    mx.set_default_device(mx.cpu)
    with open(f"{directory}/config.json") as file:
        has_module = "model_file" in json.load(file)
    # Experts that lie apart are stacked by a module in the checkpoint itself.
    model, tokenizer = load(directory, trust_remote_code=True) if has_module else load(directory)
    tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    for _ in range(N_TOKENS):
        logits = model(mx.array([tokens]))[0, -1]
        tokens.append(int(mx.argmax(logits)))
    ours = tokens[-N_TOKENS:]
    print(f"mlx-lm says: {tokenizer.decode(ours)!r}")
    if len(sys.argv) == 3:
        command = [sys.argv[2], "run", directory, TEXT, "--raw", "--greedy", "--precise", "--ignore-eos"]
        command += ["--tokens", str(N_TOKENS), "--json"]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        theirs = answer["tokens"]
        if theirs and isinstance(theirs[0], dict):
            theirs = [token["id"] for token in theirs]
        same = next((i for i in range(N_TOKENS) if theirs[i] != ours[i]), N_TOKENS)
        print(f"the program says the same {same} tokens first")
        if same < N_SAME:
            sys.exit(f"the program says other tokens: {theirs}, mlx-lm {ours}")


main()
