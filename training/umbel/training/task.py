"""What a person asks for: one adapter, trained on one dataset. Its fields are the long flags of ``umbel train``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from umbel.adapters import DEFAULT_METHOD
from umbel.core.contract import OutputHead
from umbel.core.errors import ConfigError
from umbel.core.forms import UNQUANTISED, read_form
from umbel.core.gate import parse_gate
from umbel.core.names import check_name
from umbel.training.selection import Selection

Decay = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One adapter to train. Counts are of rows or optimizer steps, never of passes."""

    name: str
    """Name that the adapter is published under."""
    data: str
    """A JSONL or CSV file, a folder with train.jsonl or train.csv, or the name of a dataset of the home."""
    task: OutputHead | str
    """The output head: generate, classify, regress, tag or embed."""
    method: str = DEFAULT_METHOD
    """How the adapter acts on the backbone: a method below; none trains the output head alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The method's own settings, such as rank and alpha."""

    train: str = "adapter"
    """What is trained: adapter; head or mlp-head (the output head alone); layers=last:4, layers=first:2, layers=3,7,11
    or layers=regex:... (those layers of the backbone and the head); all."""
    train_embeddings: bool | None = None
    """Also the embeddings (and lm_head); all does where not said, layers does not."""
    train_norms: bool | None = None
    """Also the norms; where not said those of the trained layers."""
    precision: str | None = None
    """Of a trained backbone: fp32, bf16-mixed (fp32 masters, bf16 computation), bf16 or fp16-mixed; the backbone's own
    over fp32 masters where not given."""

    quantise: str | None = None
    """Hold the frozen backbone's linears in int8, int4 or nf4 (none: as in the checkpoint); adapters stay fp32."""

    parent: str | None = None
    """``from`` in files, ``--from`` as a flag: the version whose weights training starts with, such as name:3."""

    text_column: str | None = None
    """The file's own name for the text (generation: the prompt; tagging: the words)."""
    label_column: str | None = None
    """The file's own name for the answer: label, value, tags, completion or positive."""
    labels: tuple[str, ...] = ()
    """Order of the labels; read from the data where not given."""
    template: str = "{text}"
    """What a text is put into, with one {text} in it."""
    add_special_tokens: bool = False
    """Put the tokenizer's own special tokens (BOS) around the text."""
    max_length: int = 512
    """Most tokens of one input: longer texts are cut, rows with longer prompts left out."""
    truncation_side: Literal["left", "right"] = "right"
    """Which end of a longer text is cut."""
    abstain_below: float = 0.0
    """Classify: where the likeliest label is less probable than this, the adapter gives none."""
    max_tokens: int | None = None
    """Most tokens of a generated answer; a quarter more than the longest one in the training rows."""
    description: str = ""
    """One line for lists and the card."""
    licence: str | None = None
    """Of the version, such as apache-2.0, for its card; where not given the card states none."""

    epochs: float = 3.0
    """Passes over the training rows; ``steps`` says it otherwise."""
    steps: int | None = None
    """Optimizer steps in all."""
    batch_size: int = 16
    """Rows of one optimizer step; embed: pairs, each of which sees all others as wrong answers."""
    micro_batch: int | None = None
    """Most rows (embed: texts) of this task in one forward pass; changes memory, not the result."""
    lr: float | None = None
    """Peak learning rate; by rule from the method and the backbone's width where not given."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    decay: Decay = "cosine"
    """How the learning rate falls to zero afterwards."""
    weight_decay: float = 0.0
    """Of matrices; vectors and gates are left alone."""
    clip: float = 1.0
    """Largest norm of this adapter's gradient; 0 clips nothing."""
    seed: int = 0
    """Decides the first weights, the order of the rows and dropout; the same seed gives the same bytes."""
    limit: int | None = None
    """Train on the first N rows only."""

    trunk_cache: Literal["auto", "off"] = "auto"
    """Keep what the layers below the adapter make of a row, where rows come again: the same learning, in less time."""

    validation: str | None = None
    """A file of its own for validation."""
    test: str | None = None
    """A file of its own for the held-out test."""
    validation_fraction: float = 0.1
    """Share of a single file that is kept for validation, by a hash of the text."""
    test_fraction: float = 0.1
    """Share of a single file that is kept for the test, by a hash of the text."""
    validation_limit: int = 256
    """Validation rows looked at each time."""
    test_limit: int = 500
    """Held-out rows that the finished adapter is judged on."""
    eval_every: int | None = None
    """Steps between validations; where not given an eighth of all, and no fewer than train on as many rows as are
    looked at."""
    patience: int | None = None
    """Stop after so many validations without a better one."""
    gate: str | None = None
    """Conditions on the finished adapter's figures, such as accuracy>=0.8: promoted if all hold, else exit code 5."""
    metric: str | None = None
    """What the finished adapter is judged by; the dataset's own, or the usual one of the output head."""

    head_depth: int = 0
    """Hidden layers of the output head."""
    head_width: int = 256
    """Features of each of them."""
    head_activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """After each of them."""
    head_dropout: float = 0.0
    """Before each layer of the head, in training only."""
    pooling: Literal["last", "mean"] | None = None
    """What a head reads: the last token's hidden state, or the mean over the text; last, but mean for embed."""
    embedding_size: int | None = None
    """Embed: features of a learned projection; where not given the vector is the pooled hidden state itself."""
    temperature: float = 0.05
    """Embed: what similarities are divided by in the loss; smaller looks harder at the nearest wrong texts."""

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "task", _output_head(self.task))
        self._settle_what_is_trained()
        self._check_form()
        for name in ("max_length", "batch_size", "validation_limit", "test_limit"):
            self._at_least(name, 1)
        for name in ("max_tokens", "steps", "micro_batch", "limit", "eval_every", "patience", "embedding_size"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        for name in ("weight_decay", "clip", "seed"):
            self._at_least(name, 0)
        self._inside("warmup", self.warmup, 0, 1)
        self._inside("abstain_below", self.abstain_below, 0, 1)
        self._inside("validation_fraction", self.validation_fraction, 0, 0.5)
        self._inside("test_fraction", self.test_fraction, 0, 0.5)
        if self.gate is not None:
            parse_gate(self.gate)
        if self.abstain_below and self.output_head is not OutputHead.CLASSIFY:
            raise ConfigError(
                f"abstain_below is for classifiers, this task is {self.task}.",
                param="abstain_below",
                hint="leave it out",
            )
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}.", param="temperature")
        if self.output_head is OutputHead.EMBED and self.batch_size < 2:
            raise ConfigError(
                "an embedder learns by telling pairs apart, and batch_size 1 has nothing to tell apart.",
                param="batch_size",
                hint="use at least 2; more wrong answers a step teach more",
            )
        if self.embedding_size is not None and self.output_head is not OutputHead.EMBED:
            raise ConfigError(
                f"embedding_size is for embedders, this task is {self.task}.",
                param="embedding_size",
                hint="leave it out",
            )
        if self.epochs <= 0 or (self.lr is not None and self.lr <= 0):
            wrong = "lr" if self.epochs > 0 else "epochs"
            raise ConfigError(
                f"{wrong} must be above 0, got {getattr(self, wrong)}.",
                param=wrong,
                hint=f"leave {wrong} out for the usual value",
            )

    def _settle_what_is_trained(self) -> None:
        """Where no adapter is trained the method is ``none``, and an MLP head has a hidden layer."""
        tunes = self.selection.tunes
        if self.precision is not None and not tunes:
            raise ConfigError(
                "precision is of a backbone that is trained; adapters and heads are fp32 on a frozen one of --dtype.",
                param="precision",
                hint="leave it out, or say what is trained: --train layers=last:4",
            )
        if self.train == "adapter":
            return
        if self.method not in (DEFAULT_METHOD, "none") or self.options:  # a Task made in Python has the default one
            raise ConfigError(
                f"train = {self.train!r} trains no adapter, so it has no method {self.method!r}.",
                param="method",
                hint="leave out --method and its options, or --train",
            )
        object.__setattr__(self, "method", "none")
        if self.train == "mlp-head" and self.head_depth == 0:
            object.__setattr__(self, "head_depth", 1)
        if self.train == "head" and self.head_depth > 0:
            raise ConfigError("head_depth is for mlp-head, train is 'head'.", param="train", hint="--train mlp-head")

    def _check_form(self) -> None:
        if read_form(self.quantise) is not None and self.selection.tunes:
            raise ConfigError(
                f"train = {self.train!r} trains the backbone's own weights, and {self.quantise} ones have no gradient.",
                code="quantised_backbone",
                param="quantise",
                hint=f"--quantise {UNQUANTISED}, or train an adapter: leave out --train",
            )

    @property
    def selection(self) -> Selection:
        return Selection(text=self.train, embeddings=self.train_embeddings, norms=self.train_norms)

    def _at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ConfigError(
                f"{name} must be at least {least}, got {getattr(self, name)}.",
                param=name,
                hint=f"leave {name} out for the usual value",
            )

    def _inside(self, name: str, value: float, low: float, high: float) -> None:
        if not low <= value < high:
            raise ConfigError(
                f"{name} must be at least {low} and below {high}, got {value}.",
                param=name,
                hint=f"leave {name} out for the usual value",
            )

    @property
    def output_head(self) -> OutputHead:
        return OutputHead(self.task)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON that ``task_of`` reads back to an equal task."""
        fields = {key: value for key, value in asdict(self).items() if key != "options"}
        return {**fields, "task": str(self.task), **self.options}


def _output_head(name: str) -> OutputHead:
    try:
        return OutputHead(name)
    except ValueError:
        near = get_close_matches(name, list(OutputHead), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(OutputHead)}"
        raise ConfigError(f"there is no output head {name!r}.", param="task", hint=hint) from None
