"""Presets of layers: the sets that sd-scripts, LyCORIS and trainers of transformers adapt, as rules.

Sources: `networks/lora.py` and `lora_flux.py` of sd-scripts 0.10.1 (LierLa is what it adapts without
`conv_dim`, C3Lier with it) and `config.py` of LyCORIS 4.1.3. They name classes of modules; here the
same layers are named by their parts in blocks, so that a preset means something in every family.
Norms count only where a run trains them, and T5 only where a rule before a preset switches it on, as
`train_t5xxl` does there.

Departures from LyCORIS: `full` has `label_emb` of SDXL too; `attn-mlp` has no modulation in
transformers, as its name says (LierLa has); `ia3` matches what it is meant to, where LyCORIS' own
patterns match nothing.
"""

from collections.abc import Mapping

# Linear 1 and 2 of Flux' single blocks are attention and MLP in one.
ATTENTION = (
    "ALL.attn, ALL.attn1, ALL.attn2, ALL.img.attn, ALL.img.attn2, ALL.txt.attn, "
    "ALL.linear1, ALL.linear2"
)
MLP = "ALL.mlp, ALL.img.mlp, ALL.txt.mlp"
MODULATION = "ALL.mod, ALL.img.mod, ALL.txt.mod"
AROUND = "ALL.proj"
"""Before and behind the transformer blocks of a UNet."""
RESNETS = "ALL.conv, ALL.emb"
"""With the samplers between them."""

NORMS = "ALL.norm, ALL.img.norm, ALL.txt.norm"
NORMS_OF_RESNETS = "*.in_layers.0, *.out_layers.0"

TRANSFORMERS = f"""\
T5, TE.norm, {NORMS_OF_RESNETS}: off
{ATTENTION}, {MLP}, {MODULATION}, {AROUND}, {NORMS}: on
ALL: off"""
"""sd-scripts' `Transformer2DModel`, and every layer in the blocks of a transformer."""
EVERYTHING = """\
T5: off
TE.attn, TE.mlp: on
TE: off
ALL: on"""

VALUES = "ALL.attn.{0}, ALL.attn1.{0}, ALL.attn2.{0}, ALL.img.attn.{0}, ALL.txt.attn.{0}"
KEYS_AND_VALUES = ", ".join(VALUES.format(one) for one in ("k", "v", "kv", "qkv"))
SECOND_OF_MLP = "*.ff.net.2, *.ffn.2, *.mlp.2, *.mlp.fc2, *_mlp.2, *_mlp.net.2, *.feed_forward.w2"

LAYER_PRESETS: Mapping[str, str] = {
    "LierLa": TRANSFORMERS,
    "C3Lier": f"""\
IN00, T5, TE.norm: off
{ATTENTION}, {MLP}, {MODULATION}, {AROUND}, {RESNETS}, {NORMS}: on
ALL: off""",
    "full": EVERYTHING,
    "full-lin": f"ALL: conv_rank=0\n{EVERYTHING}",
    "attn-mlp": f"""\
T5, TE.norm, {NORMS_OF_RESNETS}: off
{ATTENTION}, {MLP}, {AROUND}, {NORMS}: on
ALL: off""",
    "attn-only": f"T5: off\n{ATTENTION}: on\nALL: off",
    "unet-only": "TE: off\nALL: on",
    "unet-transformer-only": f"TE: off\n{TRANSFORMERS}",
    "unet-convblock-only": f"""\
TE, IN00: off
{RESNETS}, {NORMS_OF_RESNETS}: on
ALL: off""",
    "ia3": f"""\
T5: off
{SECOND_OF_MLP}: on on_input=true
{KEYS_AND_VALUES}: on
ALL: off""",
}
"""Name -> lines of a table of rules."""
