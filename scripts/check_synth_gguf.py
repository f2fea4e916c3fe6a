#!/usr/bin/env python3
"""Opens a GGUF file that `flash-moe synth --format gguf` wrote with independent readers.

    pip install gguf ik-llama-cpp-python
    flash-moe synth --preset tiny --format gguf tiny.gguf
    python3 scripts/check_synth_gguf.py tiny.gguf target/release/flash-moe

The PyPI package `gguf` reads and decodes every tensor; ik_llama.cpp, where installed, continues a prompt greedily, and the program
must give the same tokens.
"""
import json
import subprocess
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

path, program = sys.argv[1:3]
reader = GGUFReader(path)
for tensor in reader.tensors:
    values = dequantize(tensor.data, tensor.tensor_type)
    assert np.isfinite(values).all(), tensor.name
print(f"gguf: {len(reader.tensors)} tensors, all finite")

try:
    from ik_llama_cpp import IkLlama
except ImportError:
    sys.exit("ik_llama.cpp: not installed, not compared")
llama = IkLlama(path, n_ctx=256, verbose=False)
prompt = [10, 20, 30, 40, 50]
theirs = list(llama.generate(prompt, max_tokens=16, temperature=0.0))
text = llama.detokenize(prompt)
answer = subprocess.run(
    [program, "run", path, text, "--raw", "--greedy", "--tokens", "16", "--json"],
    capture_output=True, check=True, text=True,
)
ours = json.loads(answer.stdout)
assert ours["prompt_tokens"] == prompt, ours["prompt_tokens"]
assert ours["tokens"] == theirs, (ours["tokens"], theirs)
print(f"ik_llama.cpp: the same {len(theirs)} tokens")
