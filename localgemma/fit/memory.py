"""What a load takes, device by device: weights from the header, KV from the shape, buffers from llama.cpp or a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Literal

from localgemma.files.header import Header
from localgemma.fit.buffers import Buffers, Compute
from localgemma.gemma4.shape import GEMMA_31B, Shape, from_metadata, layer_values
from localgemma.llamacpp.embeddings import CACHE_BYTES
from localgemma.options import LoadOptions
from localgemma.units import MIB

Source = Literal["header", "file size", "shape", "dry run", "table", "measured here", "estimate", "margin", "limit"]
VOCABULARY_BYTES = 480  # a token's names and merges in llama.cpp and here; measured on the 262,144-token vocabulary
MARGIN = 256 * MIB  # a GPU's allocator rounds, and a desktop's windows come and go
HOST_MARGIN = 512 * MIB
DRAFTER_BUFFERS = 64 * MIB  # eight rows of logits and a few layers' results
DRAFTER_HERE = 60  # per cent of a drafter's file is its embedding, which stays in RAM too
LATER = ("margin", "program", "pictures", "pictures seen", "checkpoints")  # of a load's items, what comes after it


@dataclass(frozen=True, slots=True)
class Item:
    """One share of a device's memory: what it is for, bytes, and where the figure comes from."""

    what: str
    size: int
    source: Source


@dataclass(frozen=True, eq=False)
class Weights:
    """Bytes of a text model's tensors: the embedding, each layer, and the output, which is the embedding again where tied.

    `largest` is the largest matrix of a layer, `types` the layers' bytes by ggml type id. `exact` says that they come from
    the file's tensor table; else the file's size was shared out by the layers' proportions.
    """

    shape: Shape
    embedding: int
    output: int
    layers: tuple[int, ...]
    largest: int
    exact: bool
    types: tuple[tuple[int, int], ...] = ()
    output_type: int = 14
    header: Header | None = None

    @property
    def total(self) -> int:
        """Bytes that a token's computation reads: every layer and the output, the embedding only once."""
        return sum(self.layers) + self.output


def weights_of(header: Header) -> Weights:
    """The weights of a gemma4 file by its tensor table; BadModelFile where the table and the metadata do not agree."""
    by_name = {tensor.name: tensor for tensor in header.tensors}
    embedding = by_name.get("token_embd.weight")
    vocabulary = embedding.shape[1] if embedding is not None and len(embedding.shape) > 1 else 0
    shape = from_metadata(header.metadata, vocabulary)
    layers = [0] * len(shape.layers)
    types: dict[int, int] = {}
    largest = 0
    for tensor in header.tensors:
        place = tensor.name.split(".")
        if place[0] == "blk" and place[1].isdigit() and int(place[1]) < len(layers):
            layers[int(place[1])] += tensor.nbytes
            largest = max(largest, tensor.nbytes)
            types[tensor.type_id] = types.get(tensor.type_id, 0) + tensor.nbytes
    output = by_name.get("output.weight", embedding)
    size = embedding.nbytes if embedding else 0
    return Weights(
        shape, size, output.nbytes if output else 0, tuple(layers), largest, True, tuple(sorted(types.items())),
        output.type_id if output else 0, header,
    )  # fmt: skip


# Bits a weight of the embedding table by the quantisation's first letters (llama-quant.cpp, and the published files'
# sizes); an estimate, used only where a file's header is not at hand.
_QUANTS = (  # start of the name, the layers' usual ggml type id, bits of the embedding
    ("BF16", 30, 16.0), ("F16", 1, 16.0), ("Q8", 8, 8.5), ("Q6", 14, 6.5625), ("Q5", 13, 6.5625), ("Q4_0", 2, 6.5625),
    ("Q4_1", 3, 6.5625), ("Q4", 12, 6.5625), ("IQ4_NL", 20, 6.5625), ("IQ4", 23, 6.5625), ("Q3", 11, 6.5625),
    ("IQ3", 21, 5.5), ("Q2", 10, 5.5), ("IQ2", 22, 5.5), ("IQ1", 29, 5.5),
)  # fmt: skip
FILE_OVERHEAD = 15_833_440  # header and tokenizer of the published files (their size less their tensors)


def weights_estimate(file_bytes: int, quant: str, shape: Shape = GEMMA_31B) -> Weights:
    """The weights of a file that is known by its size and quantisation alone."""
    plain = quant.upper().removeprefix("UD-")
    kind, bits = next(((kind, bits) for start, kind, bits in _QUANTS if plain.startswith(start)), (12, 6.5625))
    embedding = int(shape.vocabulary * shape.hidden * bits / 8)
    values = [layer_values(shape, index) for index in range(len(shape.layers))]
    rest = max(0, file_bytes - FILE_OVERHEAD - embedding)
    layers = tuple(rest * count // sum(values) for count in values)
    largest = shape.hidden * shape.feed_forward * max(layers) // max(values)
    return Weights(shape, embedding, embedding, layers, largest, False, ((kind, sum(layers)),))


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to load: the options, how many layers each GPU takes (the output counts as the last), bytes of the companions.

    Layers go to the GPUs in order, those before them to the CPU, as llama.cpp does it.
    """

    weights: Weights
    options: LoadOptions
    tokens: int
    placement: tuple[int, ...]
    projector: int = 0
    drafter: int = 0

    @property
    def on_gpu(self) -> int:
        """Layers on GPUs, the output included."""
        return sum(self.placement)

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """For each GPU the range of layers; index `len(layers)` is the output."""
        start = len(self.weights.layers) + 1 - self.on_gpu
        ends = list(accumulate(self.placement, initial=start))
        return tuple(pairwise(ends))


@dataclass(frozen=True, slots=True)
class Need:
    """What a setup takes: a list of items for each GPU, and one for the computer's own memory.

    `droppable` are bytes of the mapped file that stay resident after the load as long as nobody needs the memory.
    """

    gpus: tuple[tuple[Item, ...], ...]
    host: tuple[Item, ...]
    droppable: int = 0

    def gpu(self, index: int) -> int:
        """Bytes on a GPU."""
        return sum(item.size for item in self.gpus[index])

    @property
    def host_total(self) -> int:
        """Bytes of RAM that the load cannot do without."""
        return sum(item.size for item in self.host)


@lru_cache(maxsize=4096)
def layer_sums(weights: Weights, kv: str, tokens: int, ubatch: int, sequences: int) -> tuple[list[int], list[int]]:
    """Running sums of the layers' weights and of their KV bytes, from none to all."""
    shape = weights.shape
    sizes = {layer: shape.kv_bytes(layer, kv, tokens, ubatch, sequences) for layer in set(shape.layers)}
    cache = accumulate((sizes[layer] for layer in shape.layers), initial=0)
    return list(accumulate(weights.layers, initial=0)), list(cache)


def need(setup: Setup, compute: Compute) -> Need:
    """The memory of a setup."""
    weights, options, count = setup.weights, setup.options, len(setup.weights.layers)
    source: Source = "header" if weights.exact else "file size"
    layers, kv = layer_sums(weights, options.kv, setup.tokens, options.physical_batch, options.sequences)
    buffers = compute(setup)
    seen_by_gpu = bool(setup.projector and options.projector_on_gpu and setup.placement)
    vision = (
        Item("projector", setup.projector, source),
        Item("pictures", compute.projector(options.image_tokens) if setup.projector else 0, "table"),
    )
    gpus = []
    for index, (start, end) in enumerate(setup.ranges()):
        last = min(end, count)
        output = weights.output if end > count >= start else 0
        items = [
            Item("weights", layers[last] - layers[start] + output if end > start else 0, source),
            Item("KV cache", kv[last] - kv[start] if end > start else 0, "shape"),
            Item("compute buffer", buffers.gpus[index], buffers.source),
            *(vision if index == 0 and seen_by_gpu else ()),
            *_draft(setup, end > start),
        ]
        if any(item.size for item in items):
            items += [Item("driver", compute.driver(index), compute.driver_source), Item("margin", MARGIN, "margin")]
        gpus.append(tuple(item for item in items if item.size))
    return Need(tuple(gpus), *_host(setup, compute, buffers, () if seen_by_gpu else vision))


def _host(setup: Setup, compute: Compute, buffers: Buffers, vision: tuple[Item, ...]) -> tuple[tuple[Item, ...], int]:
    """The items in the computer's memory, and what of the mapped file may be dropped."""
    weights, options, count = setup.weights, setup.options, len(setup.weights.layers)
    source: Source = "header" if weights.exact else "file size"
    layers, kv = layer_sums(weights, options.kv, setup.tokens, options.physical_batch, options.sequences)
    first = max(0, min(count, count + 1 - setup.on_gpu))
    here = setup.on_gpu == 0  # the output is the embedding again, and needs room of its own only where it is not mapped
    copies, copied, output = _copies(weights, compute) if here else (0, 0, 0)
    if here and not output and (weights.output != weights.embedding or not options.mmap):
        output = weights.output
    items = (
        Item("weights", weights.embedding + output + layers[first] - copied + copies, source),
        Item("KV cache", kv[first], "shape"),
        Item("compute buffer", buffers.host, buffers.source),
        *vision,
        *(_draft(setup, here) or (Item("drafter", setup.drafter * DRAFTER_HERE // 100, source),)),
        Item("pictures seen", CACHE_BYTES if setup.projector else 0, "table"),
        Item("checkpoints", options.checkpoint_bytes or 0, "limit"),
        Item("vocabulary", weights.shape.vocabulary * VOCABULARY_BYTES, "table"),
        Item("program", compute.program, compute.program_source),
        Item("margin", HOST_MARGIN, "margin"),
    )
    return tuple(item for item in items if item.size), copied if options.mmap else 0


def _copies(weights: Weights, compute: Compute) -> tuple[int, int, int]:
    """What a load without a GPU holds in other layouts: bytes of the layers' copies, what they copy, the output's copy.

    A tied output has a copy of its own beside the embedding, which is only looked up.
    """
    copies, copied = 0.0, 0
    for kind, size in weights.types:
        if ratio := compute.repacked(kind):
            copies, copied = copies + size * ratio, copied + size
    return int(copies), copied, int(weights.output * compute.repacked(weights.output_type))


def _draft(setup: Setup, here: bool) -> tuple[Item, ...]:
    """The drafter where its layers are: it goes where the model's last layers go, and several GPUs may each get a part."""
    if not here or not setup.drafter:
        return ()
    source: Source = "header" if setup.weights.exact else "file size"
    return (Item("drafter", setup.drafter, source), Item("drafter's buffers", DRAFTER_BUFFERS, "table"))


def resident(setup: Setup, compute: Compute) -> int:
    """Bytes of RAM that a process holds more after this load and a full context, before any picture."""
    taken = need(setup, compute)
    return taken.droppable + sum(item.size for item in taken.host if item.what not in LATER)


def split_shares(placement: Sequence[int]) -> tuple[float, ...]:
    """llama.cpp's tensor_split that gives each GPU exactly its count of layers (llama-model.cpp get_layer_buft_list).

    Its borders are compared as floats, so they are put between two layers.
    """
    shares = [float(count) for count in placement]
    if len(shares) > 1:
        shares[0] -= 0.5
        shares[-1] += 0.5
    return tuple(shares)
