"""The parts of a block: attention by its projections, MLP, norms, convolutions, by their names.

Tools call the same layer `attn1.to_q`, `self_attn.q` or `attn.w1q`; a part has one name for all:

    attn1.q  attn2.kv  attn.out  attn.qkv     attn1 is self attention, attn2 cross attention, and
                                              attn the only one there is
    mlp  mod  norm  conv  emb  proj  other
    linear1  linear1.q  linear2               of Flux' single blocks: attention and MLP in one
    img.attn.q  txt.mlp                       in blocks of two streams
"""

import re
from functools import lru_cache

TEXT_STREAM = re.compile(
    "(?:^|_)(?:txt|context_block|ff_context|attn_add_[qkv]_proj|to_add_out|norm_added|norm1_context)_?"
)
IMAGE_STREAM = re.compile("(?:^|_)(?:img|x_block)_")
AURAFLOW_TEXT = re.compile("attn_w1|mlpC|modC_")

# In this order: a norm inside of an attention is a norm, and `norm1.linear` makes a modulation.
KINDS = (
    (
        "mod",
        "(?:^|_)norm(?:[12]|_out)?(?:_context)?_linear|modulation|adaLN|scale_shift|(?:^|_)mod(?:_|[CX]|$)",
    ),
    ("norm", "norm|(?:^|_)ln_?[qk0-9]|(?:in|out)_layers_0$"),
    ("linear1", "^linear1|^proj_mlp$|to_qkv_mlp_proj$|^processor_qkv"),
    ("linear2", "^linear2$|^proj_out$|^attn_to_out|^processor_proj"),
    ("attn", "att(?:ention|n)|SelfAttention|(?:^|_)to_(?:q|k|v|out)(?:_|$)"),
    ("mlp", "(?:^|_)(?:ff|ffn|mlp[CX]?|feed_forward|fc[12]|experts?|gate)(?:_|$)|DenseReluDense"),
    ("emb", "emb_layers|time_emb"),
    ("proj", "(?:^|_)proj_(?:in|out)|before_proj|after_proj"),
    ("conv", "conv|in_layers|out_layers|skip_connection|(?:^|_)op$|^0$"),
)
SINGLE_STREAM_ONLY = ("linear1", "linear2")
PROJECTIONS = (
    ("qkv", "qkv"),
    ("kv", "(?:^|_)kv(?:_|$)"),
    ("q", "(?:^|_|w[12])q(?:_|$)"),
    ("k", "(?:^|_|w[12])k(?:_|$)"),
    ("v", "(?:^|_|w[12])v(?:_|$)"),
    ("out", "out|(?:^|_)o(?:_proj)?$|w[12]o$|(?:^|_)proj$"),
)


ORDER = ("q", "k", "v", "kv", "qkv", "out")


def in_order(part: str) -> tuple[str, int]:
    """Returns a key that sorts parts by name, and the projections of an attention as they run."""
    stem, _, projection = part.rpartition(".")
    return (stem, ORDER.index(projection)) if projection in ORDER else (part, 0)


@lru_cache(maxsize=65536)
def part_of(layer: str, *, two_streams: bool = False, single_stream: bool = False) -> str:
    """Returns the part of its block that a layer is.

    Args:
        layer: Its name inside of the block, in any spelling; dots may be underscores.
        two_streams: Whether the block has a stream for the picture and one for the text: what is not
            called after the text is of the picture then.
        single_stream: Whether it is of the blocks of one stream beside such.
    """
    name = layer.replace(".", "_")
    kind = _kind(name, single_stream=single_stream)
    if kind == "attn":
        kind = _attention(name)
        kind = kind.replace("attn.", "linear1.") if single_stream else kind
    text = TEXT_STREAM.search(name) or (two_streams and AURAFLOW_TEXT.search(name))
    if text:
        return f"txt.{kind}"
    return f"img.{kind}" if two_streams or IMAGE_STREAM.search(name) else kind


def _kind(name: str, *, single_stream: bool) -> str:
    for kind, pattern in KINDS:
        if kind in SINGLE_STREAM_ONLY and not single_stream:
            continue
        if re.search(pattern, name):
            return kind
    return "other"


def _attention(name: str) -> str:
    """Returns which attention, and which of its projections."""
    cross = re.search("attn2|cross_?attn", name)
    own = re.search("attn1|self_attn(?!_[qkvo]_?proj|_out_proj)", name)
    attention = "attn2" if cross else "attn1" if own else "attn"
    rest = re.split("att(?:ention|n)[12]?|SelfAttention", name)[-1]
    projection = next((one for one, pattern in PROJECTIONS if re.search(pattern, rest)), None)
    return attention if projection is None else f"{attention}.{projection}"
