"""Further transformers: SD 3, AuraFlow, PixArt, and those that ComfyUI runs under diffusers' names.

Source: the conversion functions of diffusers 0.42 (`loaders/single_file_utils.py`), and for PixArt,
which it converts nowhere, ComfyUI's `comfy/utils.py`.
"""

from .family import Family, Mark
from .tables import Table

SD3_TABLE = """
joint_blocks.* -> transformer_blocks.*
  x_block.attn.qkv = attn.to_q+attn.to_k+attn.to_v
  x_block.attn.proj = attn.to_out.0
  x_block.attn.ln_q = attn.norm_q
  x_block.attn.ln_k = attn.norm_k
  x_block.attn2.qkv = attn2.to_q+attn2.to_k+attn2.to_v
  x_block.attn2.proj = attn2.to_out.0
  x_block.attn2.ln_q = attn2.norm_q
  x_block.attn2.ln_k = attn2.norm_k
  x_block.mlp.fc1 = ff.net.0.proj
  x_block.mlp.fc2 = ff.net.2
  x_block.adaLN_modulation.1 = norm1.linear
  context_block.attn.qkv = attn.add_q_proj+attn.add_k_proj+attn.add_v_proj
  context_block.attn.proj = attn.to_add_out
  context_block.attn.ln_q = attn.norm_added_q
  context_block.attn.ln_k = attn.norm_added_k
  context_block.mlp.fc1 = ff_context.net.0.proj
  context_block.mlp.fc2 = ff_context.net.2
  context_block.adaLN_modulation.1 = ~norm1_context.linear
context_embedder = context_embedder
pos_embed = pos_embed.pos_embed
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = time_text_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_text_embed.timestep_embedder.linear_2
y_embedder.mlp.0 = time_text_embed.text_embedder.linear_1
y_embedder.mlp.2 = time_text_embed.text_embedder.linear_2
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""

AURAFLOW_TABLE = """
double_layers.* -> joint_transformer_blocks.*
  attn.w2q = attn.to_q
  attn.w2k = attn.to_k
  attn.w2v = attn.to_v
  attn.w2o = attn.to_out.0
  attn.w1q = attn.add_q_proj
  attn.w1k = attn.add_k_proj
  attn.w1v = attn.add_v_proj
  attn.w1o = attn.to_add_out
  mlpX.c_fc1 = ff.linear_1
  mlpX.c_fc2 = ff.linear_2
  mlpX.c_proj = ff.out_projection
  mlpC.c_fc1 = ff_context.linear_1
  mlpC.c_fc2 = ff_context.linear_2
  mlpC.c_proj = ff_context.out_projection
  modX.1 = norm1.linear
  modC.1 = norm1_context.linear
single_layers.* -> single_transformer_blocks.*
  attn.w1q = attn.to_q
  attn.w1k = attn.to_k
  attn.w1v = attn.to_v
  attn.w1o = attn.to_out.0
  mlp.c_fc1 = ff.linear_1
  mlp.c_fc2 = ff.linear_2
  mlp.c_proj = ff.out_projection
  modCX.1 = norm1.linear
register_tokens = register_tokens
positional_encoding = pos_embed.pos_embed
init_x_linear = pos_embed.proj
cond_seq_linear = context_embedder
t_embedder.mlp.0 = time_step_proj.linear_1
t_embedder.mlp.2 = time_step_proj.linear_2
final_linear = proj_out
modF.1 = ~norm_out.linear
"""

PIXART_TABLE = """
blocks.* -> transformer_blocks.*
  attn.qkv = attn1.to_q+attn1.to_k+attn1.to_v
  attn.proj = attn1.to_out.0
  cross_attn.q_linear = attn2.to_q
  cross_attn.kv_linear = attn2.to_k+attn2.to_v
  cross_attn.proj = attn2.to_out.0
  mlp.fc1 = ff.net.0.proj
  mlp.fc2 = ff.net.2
  scale_shift_table = scale_shift_table
x_embedder.proj = pos_embed.proj
t_embedder.mlp.0 = adaln_single.emb.timestep_embedder.linear_1
t_embedder.mlp.2 = adaln_single.emb.timestep_embedder.linear_2
csize_embedder.mlp.0 = adaln_single.emb.resolution_embedder.linear_1
csize_embedder.mlp.2 = adaln_single.emb.resolution_embedder.linear_2
ar_embedder.mlp.0 = adaln_single.emb.aspect_ratio_embedder.linear_1
ar_embedder.mlp.2 = adaln_single.emb.aspect_ratio_embedder.linear_2
t_block.1 = adaln_single.linear
y_embedder.y_embedding = caption_projection.y_embedding
y_embedder.y_proj.fc1 = caption_projection.linear_1
y_embedder.y_proj.fc2 = caption_projection.linear_2
final_layer.linear = proj_out
final_layer.scale_shift_table = scale_shift_table
"""

# Blocks of a model itself, neither of the transformers inside a UNet nor of a second list.
BLOCK = r"transformer_blocks(?<!\d_transformer_blocks)(?<!single_transformer_blocks)_\d+_"
SD3_NAMES = Table.parse(SD3_TABLE)
AURAFLOW_NAMES = Table.parse(AURAFLOW_TABLE)
PIXART_NAMES = Table.parse(PIXART_TABLE)
SD3 = Family(
    "SD 3",
    (
        Mark(r"joint_blocks_\d+_(?:x|context)_block"),
        Mark(BLOCK + "attn2?_(?:to|add)_", 1536),
        Mark(BLOCK + "attn2?_(?:to|add)_", 2432),
    ),
    SD3_NAMES.names,
    lists=SD3_NAMES.lists,
)
AURAFLOW = Family(
    "AuraFlow",
    (
        Mark(r"joint_transformer_blocks_\d+_"),
        Mark(r"e_layers_\d+_(?:attn_w[12]|mlp[CX]?_c_|mod[CX])"),
        Mark(r"single_transformer_blocks_\d+_(?:ff_|norm1_)"),
    ),
    AURAFLOW_NAMES.names,
    lists=AURAFLOW_NAMES.lists,
    depths={"double_layers": 4, "single_layers": 32},
)
PIXART = Family(
    "PixArt",
    (
        Mark(r"blocks_\d+_cross_attn_(?:q|kv)_linear"),
        Mark("adaln_single_"),
        Mark(BLOCK + "attn[12]_to_[qkv]", 1152),
    ),
    PIXART_NAMES.names,
    lists=PIXART_NAMES.lists,
    depths={"blocks": 28},
)
QWEN_IMAGE = Family(
    "Qwen-Image",
    (
        Mark(BLOCK + "(?:img|txt)_(?:mlp|mod)"),
        Mark(BLOCK + "attn_add_[qkv]_proj"),
    ),
    same_names=".*",
    depths={"transformer_blocks": 60},
)
HIDREAM = Family(
    "HiDream",
    (Mark(r"e_stream_blocks_\d+_block"),),
    same_names=".*",
    depths={"double_stream_blocks": 16, "single_stream_blocks": 32},
)
