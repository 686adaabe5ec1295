"""The backbone's own calls of a tape: from a step's token ids to its next-token logits, in one room.

Shape letters here:  B tokens of the step   M places whose next token is wanted   H hidden   V vocabulary
"""

import ctypes
from array import array
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from umbel.backbone.decoder import Decoder, Layer, RMSNorm
from umbel.backbone.native import Kernels, NativeEmbedding, NativeLinear, Product
from umbel.core.shape import BackboneShape
from umbel.engine.native_part import Call, Room, address, at

MOST_PLACES = 64
"""Places whose logits are held. More are wanted where a prompt is scored, or where very many rows answer."""


class _Embed(ctypes.Structure):
    """``Embed`` of compact.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("of", "table", "x")),
        *((name, ctypes.c_int64) for name in ("width", "vocabulary")),
    )


class _Norm(ctypes.Structure):
    """``Norm`` of pointwise.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "more", "weight", "y")),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


class _Rotate(ctypes.Structure):
    """``Rotate`` of pointwise.c."""

    _fields_ = (("x", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("stride", "heads", "d")))


class _Silu(ctypes.Structure):
    """``Silu`` of pointwise.c."""

    _fields_ = (*((name, ctypes.c_void_p) for name in ("x", "y")), ("width", ctypes.c_int64))


class _Layer(ctypes.Structure):
    """``Layer`` of tape.h."""

    _fields_ = (("layer", ctypes.c_int64),)


class _Pick(ctypes.Structure):
    """``Pick`` of pointwise.c."""

    _fields_ = (*((name, ctypes.c_void_p) for name in ("x", "y")), ("width", ctypes.c_int64))


class _Likeliest(ctypes.Structure):
    """``Likeliest`` of pointwise.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        *((name, ctypes.c_void_p) for name in ("best", "place")),
    )


Named = tuple[str, Call | None]
"""What is done, which adapters of that name act behind, and the call that does it."""


class Next:
    """What is known of the next tokens: logits [M,V], and the likeliest of each place with its own logit [M].

    Memory that nobody wrote to takes no room.
    """

    def __init__(self, hidden: int, vocabulary: int) -> None:
        self.states = torch.empty(MOST_PLACES, hidden, dtype=torch.bfloat16)
        self.logits = torch.empty(MOST_PLACES, vocabulary, dtype=torch.bfloat16)
        self.best = array("f", [0.0] * MOST_PLACES)
        self.tokens = array("q", [0] * MOST_PLACES)


class BareCalls:
    """In the order of a step: ``embed``, those of ``layers``, ``norm``, and ``ends``, if the kernels have lm_head."""

    def __init__(self, decoder: Decoder, shape: BackboneShape, kernels: Kernels, room: Room, found: Next) -> None:
        self.room, self._shape, self._kernels = room, shape, kernels
        self._told: list[ctypes.Structure] = []
        self.products: list[Product] = []
        """Of the linears, in their order."""
        self.embed = self._embed(decoder)
        self.layers: list[list[Named]] = []
        more: Tensor | None = None
        for layer in decoder.layers:
            assert isinstance(layer, Layer)
            self.layers.append(list(self._layer(layer, more)))
            more = room.out
        self.norm = self._norm(room.out, decoder.norm)
        lm_head = decoder.lm_head
        self.ends = list(self._ends(lm_head, found)) if isinstance(lm_head, NativeLinear) else []
        for product, following in pairwise(self.products):
            product.next = ctypes.addressof(following)

    @property
    def last_layer(self) -> tuple[list[Named], list[Named]]:
        """What the last layer does up to its attention, and behind it."""
        calls = self.layers[-1]
        behind = 1 + [name for name, _ in calls].index("attend")
        return calls[:behind], calls[behind:]

    def _embed(self, decoder: Decoder) -> Call:
        embedding, room = decoder.embedding, self.room
        told = _Embed(x=room.x.data_ptr(), width=self._shape.hidden, vocabulary=self._shape.vocab)
        if isinstance(embedding, NativeEmbedding):
            held = embedding.lm_head.told(room.h, room.x, None)
            self._told.append(held)
            told.of = ctypes.addressof(held)
        else:
            assert embedding.weight.is_contiguous()
            told.table = embedding.weight.data_ptr()
        return self._call("embed", told)

    def _layer(self, layer: Layer, more: Tensor | None) -> Iterator[Named]:
        """Calls by the name of what they do; adapters of that name act behind them."""
        room, shape = self.room, self._shape
        index = _Layer(layer=layer.index)
        turned = shape.heads + shape.kv_heads
        rotate = _Rotate(x=room.qkv.data_ptr(), stride=room.qkv.stride(0), heads=turned, d=shape.head_dim)
        silu = _Silu(x=room.gate_up.data_ptr(), y=room.act.data_ptr(), width=room.act.shape[1])
        yield "norm", self._norm(more, layer.attention_norm)
        yield from self._site(layer, "qkv")
        yield "rotate", self._call("rotate", rotate)
        yield "decode", self._call("decode", index)
        yield "attend", self._call("prompt", index)
        yield from self._site(layer, "o")
        yield "norm", self._norm(room.out, layer.mlp_norm)
        yield from self._site(layer, "gate_up")
        yield "silu", self._call("silu_mul", silu)
        yield from self._site(layer, "down")
        yield "mlp", None

    def _site(self, layer: Layer, site: str) -> Iterator[Named]:
        yield f"{site}.in", None
        x, y = self.room.of_site(site)
        yield site, self._linear("linear", getattr(layer, site), x, y)

    def _ends(self, lm_head: NativeLinear, found: Next) -> Iterator[Call]:
        room, logits, width = self.room, found.logits.data_ptr(), found.logits.shape[1]
        yield self._call("pick", _Pick(x=room.h.data_ptr(), y=found.states.data_ptr(), width=room.h.shape[1]))
        yield self._linear("lm_head", lm_head, found.states, found.logits)
        told = _Likeliest(x=logits, width=width, best=at(found.best), place=at(found.tokens))
        yield self._call("likeliest", told)

    def _linear(self, name: str, linear: NativeLinear, x: Tensor, y: Tensor) -> Call:
        assert isinstance(linear, NativeLinear)
        product = linear.told(x, y, self.room.linears)
        self.products.append(product)
        return self._call(name, product)

    def _norm(self, more: Tensor | None, norm: RMSNorm) -> Call:
        room = self.room
        told = _Norm(
            x=room.x.data_ptr(), more=None if more is None else more.data_ptr(),
            weight=norm.weight.data_ptr(), y=room.h.data_ptr(), width=room.x.shape[1], eps=norm.eps,
        )  # fmt: skip
        return self._call("norm", told)

    def _call(self, name: str, structure: ctypes.Structure) -> Call:
        self._told.append(structure)
        return address(self._kernels, f"umbel_tape_{name}"), ctypes.addressof(structure)
