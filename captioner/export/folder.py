"""A captioner as a folder that needs no PyTorch: the network as three ONNX graphs, and a runner.

B images · K caption rows of an image · T cached tokens · V vocabulary · L layers · H heads · N memory positions
"""

import importlib.metadata
import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from captioner.caption import object_tokens
from captioner.checkpoint import describe
from captioner.errors import ConfigError
from captioner.export.runner import CONFIG, DECODE_STEP, ENCODE, PAST, PRESENT, PROJECT, TOKENIZER
from captioner.files import write_whole
from captioner.model.attention import KeyValues
from captioner.model.cache import CaptionCache, LayerCache
from captioner.model.caption_model import CaptionModel
from captioner.model.decoder import TextDecoder
from captioner.model.encoder import VisionEncoder
from captioner.model.memory import Memory
from captioner.model_files import CARD
from captioner.search_options import LENGTHS
from captioner.text import first_line
from captioner.tokenizer import Tokenizer

OPSET = 18
"""Version of ONNX's operators."""
SOURCES = Path(__file__).parents[1]
COMMAND, PACKAGE, LICENSE = "run.py", "captioner_parts", "LICENSE"
"""The runner, the modules that it imports, and their license."""
LENGTH_OPTIONS = ("min_length", "max_length", "length_penalty")


class Graph(nn.Module):
    """A function of a network and tensors as a module, which PyTorch's exporter takes."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]], network: nn.Module) -> None:
        super().__init__()
        self.function, self.network = function, network

    def forward(self, *inputs: Any) -> Tensor | tuple[Tensor, ...]:
        return self.function(self.network, *inputs)


def project(decoder: TextDecoder, features: Tensor) -> tuple[Tensor, ...]:
    """features (B, N, E) -> the memory: keys and values (B, H, N, d) of every layer in turn."""
    return tuple(part for layer in decoder.project(features).layers for part in (layer.keys, layer.values))


def decode_step(
    decoder: TextDecoder, tokens: Tensor, memory: Sequence[Tensor], past: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """tokens (B, K), the memory, and the cache: keys and values (B, K, H, T, d) of every layer in turn ->
    log-probabilities (B, K, V), attention weights (B, K, L, H, N), and the cache with these tokens."""
    images, rows = tokens.shape
    layers = tuple(KeyValues(*pair) for pair in zip(memory[::2], memory[1::2], strict=True))
    caches = tuple(GrowingCache(*pair) for pair in zip(past[::2], past[1::2], strict=True))
    cache = CaptionCache(layers=0, capacity=0)
    cache.layers = caches
    logits, weights = decoder(tokens.view(-1, 1), Memory(layers, ()), cache, return_weights=True)
    present = (part for layer in caches for part in (layer.keys, layer.values))
    outputs = logits.log_softmax(dim=-1).squeeze(1), weights.squeeze(3), *present
    return tuple(each.unflatten(0, (images, rows)) for each in outputs)


class GrowingCache(LayerCache):
    """A cache that concatenates, because a graph cannot write into a preallocated buffer."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Begin with keys and values (B, K, H, T, d)."""
        super().__init__(capacity=0)
        self.keys, self.values = keys.flatten(0, 1), values.flatten(0, 1)
        self.length = keys.shape[3]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys, self.values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        return self.keys, self.values


def export_onnx(model: CaptionModel, tokenizer: Tokenizer, folder: Path, *, card: str, int8: bool = False) -> None:
    """Write the folder of a model on the CPU in evaluation mode; `int8` rounds the matrices of its linear layers.

    `card` is the model's card; a section about the folder follows it. Raises ConfigError for an encoder that PyTorch
    cannot export.
    """
    (folder / PACKAGE).mkdir(parents=True, exist_ok=True)
    try:
        _write_graphs(model, folder)
    except RuntimeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        name = model.config.encoder.name
        raise ConfigError(f"encoder {name}: PyTorch cannot export it ({first_line(cause)}); choose another") from error
    if int8:
        for name in (ENCODE, PROJECT, DECODE_STEP):
            round_weights(folder / name)
    about = describe(model, tokenizer)
    contents = {TOKENIZER: about.pop("tokenizer"), LICENSE: _license(), **_runner()}
    section = (SOURCES / "export/card.md").read_text(encoding="utf-8")
    numbers = "8-bit integers" if int8 else "float32"
    contents[CARD] = f"{card.rstrip()}\n\n{section.format(opset=OPSET, numbers=numbers)}"
    about["onnx"] = {
        "opset": OPSET,
        "int8": int8,
        "grid": model.encoder.grid,
        "prefix": model.encoder.prefix,
        "object_tokens": object_tokens(tokenizer) if tokenizer.kind == "word" else [],
        "lengths": {name: dict(zip(LENGTH_OPTIONS, values, strict=True)) for name, values in LENGTHS.items()},
    }
    contents[CONFIG] = json.dumps(about, indent=2) + "\n"
    for name, content in contents.items():
        write_whole(folder / name, content.encode())


@torch.no_grad()
def _write_graphs(model: CaptionModel, folder: Path) -> None:
    # Sizes that vary must differ in the examples and be above 1: 2 images, 3 rows, 4 cached tokens.
    images = torch.zeros(2, 3, *model.encoder.image_size, dtype=torch.uint8)
    features = model.encoder(images)
    memory = tuple(part.contiguous() for part in project(model.decoder, features))
    past = tuple(part.new_zeros(2, 3, part.shape[1], 4, part.shape[3]) for part in memory)
    step = torch.zeros(2, 3, dtype=torch.long), memory, past
    images_size, rows_size, length = (torch.export.Dim(name) for name in ("images", "rows", "length"))
    named = ({0: images_size},)
    cached = {0: images_size, 1: rows_size, 3: length}
    sizes = {0: images_size, 1: rows_size}, named * len(memory), (cached,) * len(past)
    names = [f"{kind}_{layer}" for layer in range(len(memory) // 2) for kind in ("keys", "values")]
    inputs = ["tokens", *names, *(PAST + name for name in names)]
    outputs = ["log_probs", "weights", *(PRESENT + name for name in names)]
    encode, decoder = Graph(VisionEncoder.features, model.encoder), model.decoder
    for name, graph, example, shapes, graph_inputs, graph_outputs in (
        (ENCODE, encode, (images,), named, ["images"], ["features"]),
        (PROJECT, Graph(project, decoder), (features,), named, ["features"], names),
        (DECODE_STEP, Graph(decode_step, decoder), step, sizes, inputs, outputs),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name")  # that inputs share one is intended
            torch.onnx.export(
                graph.eval(),
                example,
                folder / name,
                input_names=graph_inputs,
                output_names=graph_outputs,
                dynamic_shapes={"inputs": shapes},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )


def round_weights(path: Path) -> None:
    """Round the matrices of a graph to integers; inputs are rounded while it runs."""
    quant_pre_process(path, path, skip_symbolic_shape=True)
    quantize_dynamic(
        path,
        path,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,  # to 7 bits: products of 8 bits overflow on processors without VNNI
        extra_options={"MatMulConstBOnly": True},  # attention multiplies inputs only
    )


def _runner() -> dict[str, str]:
    """Path in the folder -> content, of the runner and the modules that it imports; they import each other there."""
    files: dict[str, str] = {}
    ahead = {"export/runner": COMMAND}
    while ahead:
        name, path = ahead.popitem()
        text = (SOURCES / f"{name}.py").read_text(encoding="utf-8")
        files[path] = re.sub(r"^( *from )captioner\.", rf"\1{PACKAGE}.", text, flags=re.MULTILINE)
        imported = {name: f"{PACKAGE}/{name}.py" for name in re.findall(r"^from captioner\.(\w+) ", text, re.MULTILINE)}
        ahead |= {name: path for name, path in imported.items() if path not in files}
    return files


def _license() -> str:
    """The license of the package: beside its metadata if it is installed, else at the root of the repository."""
    try:
        installed = importlib.metadata.distribution("captioner").read_text(f"licenses/{LICENSE}")
    except importlib.metadata.PackageNotFoundError:
        installed = None
    return installed or (SOURCES.parent / LICENSE).read_text(encoding="utf-8")
