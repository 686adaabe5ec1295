"""Forms in which a backbone's frozen linears are held, beside the checkpoint's own. Words for all who speak of them."""

from typing import Literal

from umbel.core.errors import ConfigError

Form = Literal["int8", "int4", "nf4"]
"""int8: 8 bits, a scale per output feature. int4: 4 bits, scale and zero point per 32 inputs. nf4: QLoRA's 4-bit normal
floats (Dettmers et al. 2023), a scale per 64 inputs. Weights only: activations stay as they are."""

FORMS: tuple[Form, ...] = ("int8", "int4", "nf4")
UNQUANTISED = "none"
"""Says so where a setting says otherwise."""


def read_form(text: str | None, default: Form | None = None) -> Form | None:
    """None for the checkpoint's own weights. Raises ConfigError (``unknown_quantisation``)."""
    if text is None:
        return default
    if text == UNQUANTISED:
        return None
    if text not in FORMS:
        raise ConfigError(
            f"{text!r} is no form of quantised weights.",
            code="unknown_quantisation",
            param="quantise",
            hint=f"use {', '.join(FORMS)}, or {UNQUANTISED}",
        )
    return text


def told(form: Form | None) -> str:
    return "weights as in the checkpoint" if form is None else f"{form} linears"


def other_form(name: str, made_on: Form | None, here: Form | None) -> str | None:
    """What to say of a version that answers on another form than it was trained on; None where they are the same."""
    if made_on == here:
        return None
    return f"{name} was trained on {told(made_on)} and answers on {told(here)} here: its answers may differ a little"
