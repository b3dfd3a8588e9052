"""Lumina 2 and Z-Image, which is built like it: layers with two refiners before them.

Source: the conversion functions of diffusers 0.42 (`loaders/single_file_utils.py`). ComfyUI maps
both by Z-Image's names and widths; Lumina 2 has 24 heads for queries and 8 for keys and values.
"""

from .family import Family, Mark
from .tables import Table

LUMINA_LAYER = """
  attention.qkv = attn.to_q+attn.to_k+attn.to_v attention.to_q+attention.to_k+attention.to_v
  attention.out = attn.to_out.0 attention.to_out.0
  attention.q_norm = attn.norm_q attention.norm_q
  attention.k_norm = attn.norm_k attention.norm_k
  feed_forward.w1 = feed_forward.linear_1
  feed_forward.w2 = feed_forward.linear_2
  feed_forward.w3 = feed_forward.linear_3
  attention_norm2 = norm2
  ffn_norm1 = ffn_norm1
  ffn_norm2 = ffn_norm2
"""
MODULATED = """
  adaLN_modulation.1 = norm1.linear
  attention_norm1 = norm1.norm
"""
LUMINA_TABLE = (
    "layers.* -> layers.*" + LUMINA_LAYER + MODULATED,
    "noise_refiner.* -> noise_refiner.*" + LUMINA_LAYER + MODULATED,
    "context_refiner.* -> context_refiner.*" + LUMINA_LAYER + "  attention_norm1 = norm1",
    """
cap_embedder.0 = time_caption_embed.caption_embedder.0
cap_embedder.1 = time_caption_embed.caption_embedder.1
t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
final_layer.adaLN_modulation.1 = norm_out.linear_1
final_layer.linear = norm_out.linear_2
""",
)

Z_LAYER = """
  attention.qkv = attention.to_q+attention.to_k+attention.to_v
  attention.out = attention.to_out.0
  attention.q_norm = attention.norm_q
  attention.k_norm = attention.norm_k
"""
Z_TABLE = (
    "layers.* -> layers.*" + Z_LAYER,
    "noise_refiner.* -> noise_refiner.*" + Z_LAYER,
    "context_refiner.* -> context_refiner.*" + Z_LAYER,
    """
x_embedder = all_x_embedder.2-1
final_layer.linear = all_final_layer.2-1.linear
final_layer.adaLN_modulation.1 = all_final_layer.2-1.adaLN_modulation.1
""",
)

Z_SAME_NAMES = (
    r"(?:layers|(?:noise|context)_refiner)\.\d+\.(?:feed_forward|ffn_norm|attention_norm|adaLN_).*"
    r"|(?:cap|t)_embedder\..*|(?:cap|x)_pad_token"
)
LAYER = r"layers_\d+_"
REFINER = r"_refiner_\d+_"
LUMINA_NAMES = Table.parse(*LUMINA_TABLE)
Z_NAMES = Table.parse(*Z_TABLE)
REFINERS = {"noise_refiner": 2, "context_refiner": 2}
LUMINA_2 = Family(
    "Lumina 2",
    (
        Mark(LAYER + "attn_to_"),
        Mark(REFINER + "attn_to_"),
        Mark(LAYER + "attention_(?:qkv|out|to_)", 2304),
        Mark(LAYER + "feed_forward_(?:w|linear_)[123]", 2304),
        Mark("time_caption_embed_"),
    ),
    LUMINA_NAMES.names,
    same_names="x_embedder",
    lists=LUMINA_NAMES.lists,
    depths={**REFINERS, "layers": 26},
)
Z_IMAGE = Family(
    "Z-Image",
    (
        Mark(LAYER + "attention_(?:qkv|out|to_)", 3840),
        Mark(LAYER + "feed_forward_w[123]", 3840),
        Mark(LAYER + "attention_to_q"),
    ),
    Z_NAMES.names,
    same_names=Z_SAME_NAMES,
    lists=Z_NAMES.lists,
    depths={**REFINERS, "layers": 30},
)
