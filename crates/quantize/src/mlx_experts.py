"""Loads this checkpoint in mlx-lm.

Here every routed expert lies by itself, in one range of a file, so that it can be fetched with one read.
mlx-lm wants the experts of a layer stacked. This module is the model class of mlx-lm with that one step
before its own: mlx_lm.load(path, trust_remote_code=True). Experts of fewer bits than the widest of their
layer are written in as many bits as that, which changes no value: scale * code + bias stays what it is.
"""

import importlib
import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np

_CONFIG = json.loads((Path(__file__).parent / "config.json").read_text())
_BASE = importlib.import_module("mlx_lm.models." + _CONFIG["model_type"])
_EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.(weight|scales|biases)")

ModelArgs = _BASE.ModelArgs


def _widen(words, bits, wider):
    """Codes of (rows, words) of 32 bits, as codes of more bits."""
    words = np.array(words, dtype="<u4")
    rows = words.shape[0]
    stream = np.unpackbits(words.view(np.uint8).reshape(rows, -1), axis=-1, bitorder="little")
    codes = stream.reshape(rows, -1, bits)
    codes = np.pad(codes, ((0, 0), (0, 0), (0, wider - bits)))
    packed = np.packbits(codes.reshape(rows, -1), axis=-1, bitorder="little")
    return mx.array(np.ascontiguousarray(packed).view("<u4"))


class Model(_BASE.Model):
    def sanitize(self, weights):
        stacks, others = {}, {}
        for name, value in weights.items():
            match = _EXPERT.fullmatch(name)
            if match and not name.startswith("mtp."):
                block, expert, part, kind = match.groups()
                stacks.setdefault((block, part), {}).setdefault(kind, {})[int(expert)] = value
            elif not name.startswith("flash_moe.padding."):
                others[name] = value
        plain = all("scales" not in stack for stack in stacks.values())
        if plain and _CONFIG["model_type"] in ("qwen3_moe", "qwen3_next"):
            # mlx-lm stacks these itself, and tells by them whose conventions the other tensors follow.
            others = {name: value for name, value in weights.items() if name in others or _EXPERT.fullmatch(name)}
            return super().sanitize(others)
        for (block, part), kinds in stacks.items():
            words = kinds["weight"]
            if "scales" in kinds:
                # Rows of all experts are equally wide, so words tell bits.
                groups = kinds["scales"][0].shape[-1]
                module = f"{block}.experts.{{}}.{part}"
                default = _CONFIG["quantization"]
                size = [default.get(module.format(e), default)["group_size"] for e in range(len(words))]
                bits = [words[e].shape[-1] * 32 // (groups * size[e]) for e in range(len(words))]
                widest = max(bits)
                for e in range(len(words)):
                    if bits[e] < widest:
                        words[e] = _widen(words[e], bits[e], widest)
            for kind, values in kinds.items():
                stack = mx.stack([values[e] for e in range(len(values))])
                others[f"{block}.switch_mlp.{part}.{kind}"] = stack
        return super().sanitize(others)
