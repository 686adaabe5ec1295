"""One request on its way: waiting, prefilling, decoding, done."""

import random
from dataclasses import dataclass, field

from torch import Tensor

from umbel.backbone.tokenizer import Tokenizer
from umbel.core.errors import UmbelError
from umbel.engine.guessing import Guesser
from umbel.engine.handle import Handle
from umbel.engine.requests import (
    Finished,
    FinishReason,
    GenerateRequest,
    Prompt,
    Request,
    Scored,
    Timing,
    Token,
    Usage,
)
from umbel.engine.resident import Resident
from umbel.engine.sampler import GREEDY, Choice, Drawn
from umbel.engine.text import Detokenizer, StopScanner

HEADROOM = 32
"""Places for generated tokens that a row is promised at a time."""


@dataclass(slots=True)
class Marks:
    """Instants of the engine's clock, in seconds."""

    submitted: float
    load_began: float | None = None
    load_ended: float | None = None
    admitted: float | None = None
    first_token: float | None = None

    def timing(self, now: float) -> Timing:
        load = 0.0 if self.load_began is None else (self.load_ended or now) - self.load_began
        admitted = now if self.admitted is None else self.admitted
        first = now if self.first_token is None else self.first_token
        return Timing(
            queue_ms=1000 * max(0.0, admitted - self.submitted - load),
            load_ms=1000 * load,
            prefill_ms=1000 * (first - admitted),
            decode_ms=1000 * (now - first),
        )


@dataclass(slots=True, eq=False)
class Row:
    """State of one request. Position of ``tokens[i]`` is ``offset + i``."""

    handle: Handle
    marks: Marks
    number: int
    """Order of submission."""
    mates: list["Row"] = field(default_factory=list)
    """Rows that were asked for together with it and still wait, itself among them; one list, shared by all of them."""
    leader: "Row | None" = None
    """The row that reads the prompt for both."""
    riders: list["Row"] = field(default_factory=list)
    """Rows whose output heads read this one's hidden states; they have no slot and no keys of their own."""
    resident: Resident | None = None
    """What it wears; given at admission, pinned until it leaves."""
    offset: int = 0
    """Keys of a prefix before its first token."""
    virtual: int = 0
    """Places of a soft prompt at the beginning of ``tokens``."""
    tokens: list[int] = field(default_factory=list)
    """Virtual places, prompt, generated tokens."""
    prompt_end: int = 0
    done: int = 0
    """Tokens whose keys and values are in the cache."""
    slot: int = -1
    cached: int = 0
    """Tokens at the beginning whose keys and values came from an earlier request."""
    saved: Tensor | None = None
    """Its keys and values while it makes room for others."""
    prompt_places: int = 0
    """Places of the cache for all that comes before the first generated token."""
    reserved: int = 0
    """Places that it may come to use."""
    held: int = 0
    """Places that are promised to it now; grows while it runs."""
    max_tokens: int = 0
    bypassed: int = 0
    """How often another was admitted while this one lacked memory."""
    banned: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    """Tokens that end it."""
    seed: int = 0
    sound: bool = True
    """Whether all of its prompt that was read is finite, so that others may begin with it."""
    pooled: list[Tensor] = field(default_factory=list)
    """Hidden states [tokens, H] that its output head will read."""
    scores: list[Scored] = field(default_factory=list)
    guesser: Guesser | None = None
    guesses: list[int] = field(default_factory=list)
    """Tokens of this step beyond its own, which it may come to say."""
    hits: int = 0
    """How many of them it said."""
    detokenizer: Detokenizer | None = None
    stops: StopScanner | None = None

    @property
    def request(self) -> Request:
        return self.handle.request

    @property
    def generating(self) -> GenerateRequest | None:
        request = self.request
        return request if isinstance(request, GenerateRequest) else None

    @property
    def adapter(self) -> str | None:
        return self.request.adapter

    @property
    def readers(self) -> list["Row"]:
        """All rows whose output heads read its hidden states, itself last."""
        return [*self.riders, self]

    @property
    def prefilling(self) -> bool:
        return self.done < self.prompt_end

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_end

    @property
    def used(self) -> int:
        """Places of the cache that hold something."""
        return self.offset + self.done

    @property
    def written(self) -> int:
        """The same with this step's guesses, of which it may come to say more."""
        return self.used - self.hits + len(self.guesses)

    @property
    def hold(self) -> int:
        """Places that it needs to run on for a while."""
        return min(self.reserved, max(self.used, self.prompt_places) + HEADROOM)

    @property
    def reusable(self) -> int:
        """Tokens at the beginning whose hidden states nobody reads: keys and values alone will do for them."""
        if self.scoring or not all(reader.reads_last for reader in self.readers):
            return 0
        return self.prompt_end - 1

    def unread(self, done: int, count: int) -> int:
        """Of ``count`` tokens behind the first ``done`` how many leave states that nobody reads; they come first."""
        return max(0, min(self.reusable - done, count))

    @property
    def reads_last(self) -> bool:
        """Whether all that is read of its prompt is the last hidden state."""
        return self.generating is not None or (self.resident is not None and self.resident.head.pooling == "last")

    @property
    def scoring(self) -> bool:
        """Whether the prompt's own log-probabilities are wanted."""
        request = self.generating
        return request is not None and request.echo and request.logprobs is not None

    def begin(self, resident: Resident | None, max_tokens: int, ends: frozenset[int], tokenizer: Tokenizer) -> None:
        """Fills in what depends on the adapter; the row is about to be admitted."""
        self.resident, self.max_tokens = resident, max_tokens
        self.offset = 0 if resident is None else resident.past_length
        self.virtual = 0 if resident is None else resident.num_virtual
        self.tokens = [0] * self.virtual + list(self.request.tokens)
        self.prompt_end = len(self.tokens)
        request = self.generating
        if request is not None:
            self.ends = frozenset(request.stop_token_ids) | (frozenset() if request.ignore_eos else ends)
            self.banned = tuple(sorted(self.ends)) if request.min_tokens else ()
            self.seed = random.getrandbits(63) if request.seed is None else request.seed
            self.detokenizer, self.stops = Detokenizer(tokenizer), StopScanner(request.stop)
            self.scores = [Scored(request.tokens[0], None)]

    def guess(self, most: int) -> int:
        """Guesses as many of the next tokens as it was promised places for; how many that is."""
        self.guesser = self.guesser or Guesser()
        self.guesses, self.hits = self.guesser.guess(self.tokens, min(most, self.held - self.used - 1)), 0
        return len(self.guesses)

    def guessed(self) -> None:
        """The step is over."""
        if self.guesses and self.guesser is not None:
            self.guesser.told(self.hits)
        self.guesses, self.hits = [], 0

    def choice(self, ahead: int = 0) -> Choice:
        """How the next token is to be chosen, or the one so many places behind it."""
        request = self.generating
        assert request is not None
        place = self.generated + ahead
        banned = self.banned if place < request.min_tokens else ()
        if request.temperature == 0.0 and request.logprobs is None and not banned:
            return GREEDY
        return Choice(request.temperature, request.top_p, request.top_k, self.seed, place, request.logprobs, banned)

    def give_prompt(self) -> None:
        """Puts the prompt's log-probabilities, once all are there."""
        self.handle.put(Prompt(tuple(self.scores)))
        self.scores = []

    def accept(self, drawn: Drawn) -> FinishReason | None:
        """Appends a token, gives its text away, and says whether it was the last. A right guess is read already."""
        request = self.generating
        assert request is not None
        assert drawn.token is not None
        if self.hits < len(self.guesses) and drawn.token == self.guesses[self.hits]:
            self.hits += 1
            self.done += 1
        self.tokens.append(drawn.token)
        reason, text = self._read(drawn.token, request)
        self.handle.put(Token(drawn.token, text, drawn.logprob, drawn.top))
        return reason

    def _read(self, token: int, request: GenerateRequest) -> tuple[FinishReason | None, str]:
        """Whether the row ends with this token, and its delta."""
        assert self.detokenizer is not None
        assert self.stops is not None
        ended, full = token in self.ends, self.generated >= self.max_tokens
        text = "" if ended else self.detokenizer.push(token)
        if ended or full:
            text += self.detokenizer.flush()
        if self.generated > request.min_tokens:
            text = self.stops.push(text)
        if self.stops.stopped:
            return "stop", text
        if ended or full:
            return "stop" if ended else "length", text + self.stops.flush()
        return None, text

    def finish(self, reason: FinishReason, now: float, error: UmbelError | None = None) -> None:
        """Puts the last event. Text still held back is gone, unless the row ended by itself."""
        generated = max(0, self.generated) if self.prompt_end else 0
        usage = Usage(len(self.request.tokens), generated, max(0, self.cached - self.virtual))
        self.handle.put(Finished(reason, usage, self.marks.timing(now), error))
