"""The small world's text encoder: the host's CLIP-L with weights drawn from a fixed seed.

A random transformer is a readable code of its input: every token keeps its own random vector, attention mixes the
earlier ones in, and a model trained on these features learns to read them. Nothing has to be shipped. The bytes of
the file are the same on every machine: the random bits come from numpy's PCG64, whose raw stream is fixed by its
definition, and become weights by exact float32 arithmetic (no libm, no normal sampler that a numpy release may change).
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from tools.files import write_whole

WIDTH, MLP_WIDTH, LAYERS, VOCABULARY, POSITIONS = 768, 3072, 12, 49408, 77

# Standard deviations. Tokens and positions start at unit scale and each branch adds about a tenth of the stream's
# variance, so that a token stays readable after 12 layers; queries and keys are large enough for attention to choose.
TOKEN_STD = 1.0
POSITION_STD = 0.5
QUERY_KEY_GAIN = 1.4
BRANCH_GAIN = 0.6


def clip_l_shapes() -> dict[str, tuple[tuple[int, ...], float]]:
    """Name of every CLIP-L weight -> (shape, standard deviation); biases are 0 and norm weights 1, marked by std 0."""
    shapes = {
        "embeddings.token_embedding.weight": ((VOCABULARY, WIDTH), TOKEN_STD),
        "embeddings.position_embedding.weight": ((POSITIONS, WIDTH), POSITION_STD),
        "final_layer_norm.weight": ((WIDTH,), 0.0),
        "final_layer_norm.bias": ((WIDTH,), 0.0),
    }
    linears = {
        "self_attn.q_proj": (WIDTH, WIDTH, QUERY_KEY_GAIN),
        "self_attn.k_proj": (WIDTH, WIDTH, QUERY_KEY_GAIN),
        "self_attn.v_proj": (WIDTH, WIDTH, 1.0),
        "self_attn.out_proj": (WIDTH, WIDTH, BRANCH_GAIN),
        "mlp.fc1": (WIDTH, MLP_WIDTH, 1.0),
        "mlp.fc2": (MLP_WIDTH, WIDTH, BRANCH_GAIN),
    }
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}{norm}.weight"] = ((WIDTH,), 0.0)
            shapes[f"{layer}{norm}.bias"] = ((WIDTH,), 0.0)
        for name, (n_in, n_out, gain) in linears.items():
            shapes[f"{layer}{name}.weight"] = ((n_out, n_in), gain / np.sqrt(n_in))
            shapes[f"{layer}{name}.bias"] = ((n_out,), 0.0)
    return shapes


def uniform_weights(bits: np.random.PCG64, shape: tuple[int, ...], std: float) -> np.ndarray:
    """fp16 array of `shape`, uniform on +-sqrt(3) std, 16 random bits per weight."""
    size = int(np.prod(shape))
    words = bits.random_raw((size + 3) // 4).astype("<u8").view("<u2")[:size]
    centered = (words.astype(np.float32) - np.float32(32767.5)) / np.float32(32768)
    return (centered * np.float32(std * 3**0.5)).astype(np.float16).reshape(shape)


def write_clip_l(path: Path, seed: int = 0) -> Path:
    """Write the encoder to `path` (fp16 safetensors, 246 MB, keys text_model.*) and return the path.

    text_projection is the identity, so the pooled output is the end token's state, projected or not.
    The file appears whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = np.random.PCG64(seed)
    weights = {}
    for name, (shape, std) in tqdm(clip_l_shapes().items(), desc="text encoder", leave=False, disable=None):
        if std:
            weights[f"text_model.{name}"] = uniform_weights(bits, shape, std)
        else:
            weights[f"text_model.{name}"] = np.full(shape, name.endswith(".weight"), dtype=np.float16)
    weights["text_projection.weight"] = np.eye(WIDTH, dtype=np.float16)
    write_whole(path, lambda temporary: save_file(weights, temporary, metadata={"seed": str(seed), "format": "pt"}))
    return path
