"""Wan 2.1 and 2.2, from text and from images.

Source: `convert_wan_transformer_to_diffusers` of diffusers 0.42, which gives the norm before the
cross attention another number: `norm3` in the original is `norm2` in diffusers.
"""

from .family import Family, Mark
from .tables import Table

TABLE = """
blocks.* -> blocks.*
  self_attn.q = attn1.to_q
  self_attn.k = attn1.to_k
  self_attn.v = attn1.to_v
  self_attn.o = attn1.to_out.0
  self_attn.norm_q = attn1.norm_q
  self_attn.norm_k = attn1.norm_k
  cross_attn.q = attn2.to_q
  cross_attn.k = attn2.to_k
  cross_attn.v = attn2.to_v
  cross_attn.o = attn2.to_out.0
  cross_attn.norm_q = attn2.norm_q
  cross_attn.norm_k = attn2.norm_k
  cross_attn.k_img = attn2.add_k_proj
  cross_attn.v_img = attn2.add_v_proj
  cross_attn.norm_k_img = attn2.norm_added_k
  norm3 = norm2
  ffn.0 = ffn.net.0.proj
  ffn.2 = ffn.net.2
  modulation = scale_shift_table
time_embedding.0 = condition_embedder.time_embedder.linear_1
time_embedding.2 = condition_embedder.time_embedder.linear_2
time_projection.1 = condition_embedder.time_proj
text_embedding.0 = condition_embedder.text_embedder.linear_1
text_embedding.2 = condition_embedder.text_embedder.linear_2
img_emb.proj.0 = condition_embedder.image_embedder.norm1
img_emb.proj.1 = condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3 = condition_embedder.image_embedder.ff.net.2
img_emb.proj.4 = condition_embedder.image_embedder.norm2
head.head = proj_out
head.modulation = scale_shift_table
"""
VACE = (
    TABLE[: TABLE.index("time_embedding")].replace("blocks.*", "vace_blocks.*")
    + """
  before_proj = proj_in
  after_proj = proj_out
"""
)

# Not the blocks of a UNet or of another transformer, whose names end alike.
BLOCK = r"blocks(?<![a-z]_blocks)_\d+_"
WAN_NAMES = Table.parse(TABLE, VACE)
WAN = Family(
    "Wan",
    (
        Mark(r"blocks_\d+_self_attn_[qkvo](?![a-z_])"),
        Mark(r"blocks_\d+_cross_attn_[qkvo](?![a-z_])"),
        Mark(BLOCK + "attn[12]_to_"),
        Mark(BLOCK + "ffn_(?:net_)?[02]"),
    ),
    WAN_NAMES.names,
    same_names="(?:vace_)?patch_embedding",
    lists=WAN_NAMES.lists,
)
