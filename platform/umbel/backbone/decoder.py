"""The backbone: a Llama-family decoder that calls the batch's adapters at named sites.

One definition for training, evaluation and serving; what differs is the ``Step`` that is handed in.

Shape letters here:  B rows   T tokens   H hidden   N query heads   G key/value heads   D head width
                     M wanted positions   V vocabulary
"""

from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.adapters import wide_products
from umbel.adapters.sites import BARE, LM_HEAD, SITES, Sites, gathered
from umbel.backbone.attention import Attention, WholeAttention
from umbel.backbone.checkpointing import KEEP_ALL, Checkpointing
from umbel.backbone.config import BackboneConfig, inverse_frequencies
from umbel.backbone.linears import DenseLinear, Linear
from umbel.backbone.native import Kernels, NativeEmbedding, NativeWeight, Pointwise
from umbel.core.shape import BackboneShape


@dataclass(slots=True, eq=False)
class Step:
    """What one forward pass is told besides its tokens. A plain object, so that FSDP2 casts none of its floats."""

    positions: Tensor
    """[B,T], counted from the row's first virtual token or key."""
    attention: Attention
    sites: Sites = BARE
    want: Tensor | None = None
    """[M] indices into the B*T places whose next-token logits are computed; None computes none."""
    want_sites: Sites = BARE
    """Sites for a batch whose rows are the M wanted places, T = 1 (LoRA on lm_head)."""
    checkpointing: Checkpointing = KEEP_ALL
    """Which layers' activations are computed again in the backward pass instead of being kept."""
    states: Tensor | None = None
    """[B,T,H] entering layer ``first``, where the layers below were computed before; the tokens are then not read."""
    first: int = 0
    stop: int | None = None
    """Layer before which the pass ends: the output's hidden states are what enters it, not normed."""
    decoding: int | None = None
    """Rows at the front that are tokens of answers; all beyond are prompts'. None where nobody needs to know."""
    _rotation: tuple[Tensor, Tensor] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    hidden: Tensor
    """[B,T,H] after the last norm."""
    logits: Tensor | None
    """[M,V] at ``Step.want``."""


def whole_step(sites: Sites = BARE, *, rows: int, tokens: int, offsets: Tensor | None = None, **more: object) -> Step:
    """A step over whole right-padded rows; ``offsets`` [B] is the number of virtual keys before each row."""
    positions = torch.arange(tokens).expand(rows, tokens)
    if offsets is not None:
        positions = positions.to(offsets.device) + offsets[:, None]
    return Step(positions, WholeAttention(sites), sites, **more)  # type: ignore[arg-type]


class Decoder(nn.Module):
    """Enter it by calling it; nothing else runs a forward pass (FSDP2 hooks the call)."""

    def __init__(self, config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        shape = config.shape
        self.config = config
        self.embedding: nn.Embedding | NativeEmbedding = nn.Embedding(
            shape.vocab, shape.hidden, dtype=dtype, device=device
        )
        self.layers = nn.ModuleList(Layer(i, config, dtype, device) for i in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, config.norm_eps, dtype, device)
        self.lm_head: DenseLinear | NativeWeight | None = (
            None if shape.tied else DenseLinear(shape.hidden, shape.vocab, bias=False, dtype=dtype, device=device)
        )
        self.compute_dtype = dtype
        """Of activations; parameters that are trained under mixed precision are held in a wider one."""
        self.register_buffer("inverse_frequencies", frequencies(config, dtype, device), persistent=False)
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, step: Step) -> Output:
        """tokens [B,T] -> hidden states, and logits where the step wants them."""
        x = step.states
        if x is None:
            x = step.sites.embed(self.embedding(tokens), step.positions, tokens)
        step._rotation = self.rotation(step.positions, x.dtype)
        for index, layer in islice(enumerate(self.layers), step.first, step.stop):
            x = step.checkpointing.run(index, layer, x, step)
        if step.stop is not None:
            return Output(x, None)
        hidden = self.norm(x)
        return Output(hidden, None if step.want is None else self.logits(hidden, step.want, step.want_sites))

    def use(self, kernels: Kernels) -> None:
        """From now on what stands between linears is done by them; there are no gradients then."""
        pointwise = Pointwise(kernels)
        for module in self.modules():
            if isinstance(module, Layer | RMSNorm):
                module.pointwise = pointwise

    def matrix(self, name: str) -> Tensor:
        """``embed_tokens`` or ``lm_head``, [V,H]: to adapters the decoder is the ``Ends`` of its own weights.

        A sharded one is gathered, so every process has to ask.
        """
        weight = self.embedding.weight if name == "embed_tokens" or self.lm_head is None else self.lm_head.weight
        return gathered(weight)

    def logits(self, hidden: Tensor, want: Tensor, sites: Sites = BARE) -> Tensor:
        """[M,V] of normed states [..., H], at ``want`` [M] of their places."""
        h = hidden.reshape(-1, hidden.shape[-1]).index_select(0, want)[:, None]
        y = wide_products.linear(h, self.embedding.weight) if self.lm_head is None else self.lm_head(h)
        return sites.linear(LM_HEAD, "lm_head", h, y, _NoLayer())[:, 0]

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [B,1,T,D], computed in at least fp32 and rounded once."""
        frequencies = self.get_buffer("inverse_frequencies")
        angles = positions[:, None, :, None].to(frequencies.dtype) * frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def frequencies(config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    return torch.tensor(inverse_frequencies(config), dtype=wide, device=device)


class Layer(nn.Module):
    """Attention and feed-forward with their sites; to adapters it is the ``Frozen`` of its own weights."""

    def __init__(self, index: int, config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        shape = config.shape
        self.index, self.shape = index, shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

        def linear(d_in: int, d_out: int, bias: bool) -> Linear:
            return DenseLinear(d_in, d_out, bias=bias, dtype=dtype, device=device)

        self.attention_norm = RMSNorm(shape.hidden, config.norm_eps, dtype, device)
        self.qkv: Linear = linear(shape.hidden, queries + 2 * keys, config.qkv_bias)
        self.o: Linear = linear(queries, shape.hidden, config.o_bias)
        self.mlp_norm = RMSNorm(shape.hidden, config.norm_eps, dtype, device)
        self.gate_up: Linear = linear(shape.hidden, 2 * shape.intermediate, config.mlp_bias)
        self.down: Linear = linear(shape.intermediate, shape.hidden, config.mlp_bias)
        self.row_norms2: dict[str, Tensor] = {}
        self.pointwise: Pointwise | None = None

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """[B,T,H] -> [B,T,H]."""
        x = x + step.sites.after(self.index, "attention", x, self._attention(self.attention_norm(x), step))
        return x + step.sites.after(self.index, "mlp", x, self._mlp(self.mlp_norm(x), step))

    def _attention(self, x: Tensor, step: Step) -> Tensor:
        rows, tokens, _ = x.shape
        q, k, v = self._heads(self._site("qkv", x, step), step)
        context = step.attention(self.index, q, k, v)
        context = step.sites.attend(self.index, q, context, self)
        return self._site("o", context.transpose(1, 2).reshape(rows, tokens, -1), step)

    def _heads(self, qkv: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """[B,T,(N+2G)D] -> q [B,N,T,D], k and v [B,G,T,D], queries and keys rotated."""
        rows, tokens, _ = qkv.shape
        shape = self.shape
        heads = qkv.view(rows, tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        assert step._rotation is not None
        if self.pointwise is not None:
            self.pointwise.rotate(heads, *step._rotation, shape.heads + shape.kv_heads)
        q, k, v = torch.split(heads.transpose(1, 2), [shape.heads, shape.kv_heads, shape.kv_heads], 1)
        if self.pointwise is not None:
            return q, k, v
        return rotate(q, *step._rotation), rotate(k, *step._rotation), v

    def _mlp(self, x: Tensor, step: Step) -> Tensor:
        gate_up = self._site("gate_up", x, step)
        if self.pointwise is not None:
            return self._site("down", self.pointwise.silu_mul(gate_up), step)
        gate, up = gate_up.chunk(2, -1)
        return self._site("down", F.silu(gate) * up, step)

    def _site(self, site: str, x: Tensor, step: Step) -> Tensor:
        x = step.sites.input(self.index, site, x)
        y = getattr(self, site)(x, step.decoding)
        if step.checkpointing.selective and step.sites is not BARE:
            y = y.clone()  # adapters may write into y, but what the backward pass finds kept must stay as it was
        return step.sites.linear(self.index, site, x, y, self)

    @property
    def dtype(self) -> torch.dtype:
        return self.attention_norm.weight.dtype

    def apply_frozen(self, name: str, x: Tensor, *, bias: bool = True) -> Tensor:
        site, rows = _place(name, self.shape)
        linear: Linear = getattr(self, site)
        return linear.part(x, rows, bias=bias)

    def row_norm2(self, name: str) -> Tensor:
        """Made on first use, or by ``loading`` before weights are packed or sharded."""
        if name not in self.row_norms2:
            site, rows = _place(name, self.shape)
            weight = getattr(self, site).weight[rows]
            self.row_norms2[name] = weight.to(torch.promote_types(weight.dtype, torch.float32)).square().sum(1)
        return self.row_norms2[name]

    def bias(self, site: str) -> Tensor | None:
        found: Tensor | None = getattr(self, site).bias
        return found


class _NoLayer:
    """The ``Frozen`` of lm_head: no method derives anything from it."""

    dtype = torch.float32

    def apply_frozen(self, name: str, x: Tensor, *, bias: bool = True) -> Tensor:
        raise AssertionError(f"{name} is not readable at lm_head")

    def row_norm2(self, name: str) -> Tensor:
        raise AssertionError(f"{name} is not readable at lm_head")

    def bias(self, site: str) -> Tensor | None:
        return None


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019); accumulates in at least fp32."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype, device=device), requires_grad=False)
        self.eps = eps
        self.pointwise: Pointwise | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.pointwise is not None:
            return self.pointwise.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in Hugging Face's layout: feature i pairs with i + D/2."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _place(name: str, shape: BackboneShape) -> tuple[str, slice]:
    """The fused site of a linear and its rows there."""
    for site, names in SITES.items():
        start = 0
        for other in names:
            width = shape.linear(other)[1]
            if other == name:
                return site, slice(start, start + width)
            start += width
    raise AssertionError(f"no linear {name!r}")
