"""Flux and its kin (Flux 2, Chroma, HunyuanVideo): blocks of two streams, then blocks of one.

Sources: the conversion functions of diffusers 0.42 (`loaders/single_file_utils.py`); for the spelling
of other tools, those of its `loaders/lora_conversion_utils.py`.
"""

from .family import Family, Mark
from .tables import Table

DOUBLE = """
double_blocks.* -> transformer_blocks.*
  img_attn.qkv = attn.to_q+attn.to_k+attn.to_v
  img_attn.proj = attn.to_out.0
  img_attn.norm.query_norm = attn.norm_q
  img_attn.norm.key_norm = attn.norm_k
  img_mlp.0 = ff.net.0.proj ff.linear_in
  img_mlp.2 = ff.net.2 ff.linear_out
  img_mod.lin = norm1.linear
  txt_attn.qkv = attn.add_q_proj+attn.add_k_proj+attn.add_v_proj
  txt_attn.proj = attn.to_add_out
  txt_attn.norm.query_norm = attn.norm_added_q
  txt_attn.norm.key_norm = attn.norm_added_k
  txt_mlp.0 = ff_context.net.0.proj ff_context.linear_in
  txt_mlp.2 = ff_context.net.2 ff_context.linear_out
  txt_mod.lin = norm1_context.linear
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~norm_out.linear
"""

SINGLE = """
single_blocks.* -> single_transformer_blocks.*
  linear1 = attn.to_q+attn.to_k+attn.to_v+proj_mlp
  linear2 = proj_out
  norm.query_norm = attn.norm_q
  norm.key_norm = attn.norm_k
  modulation.lin = norm.linear
single_blocks.* -> single_blocks.*
  linear1 = linear1_qkv+-
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
"""

EMBEDDERS = """
img_in = x_embedder
txt_in = context_embedder
distilled_guidance_layer.layers.* -> distilled_guidance_layer.layers.*
  in_layer = linear_1
  out_layer = linear_2
"""

# Before the blocks of Flux, as its own names are the first.
FLUX_2_FIRST = """
double_blocks.* -> transformer_blocks.*
  img_mlp.0 = ff.linear_in
  img_mlp.2 = ff.linear_out
  txt_mlp.0 = ff_context.linear_in
  txt_mlp.2 = ff_context.linear_out
single_blocks.* -> single_transformer_blocks.*
  linear1 = attn.to_qkv_mlp_proj
  linear2 = attn.to_out
  norm.query_norm = attn.norm_q
  norm.key_norm = attn.norm_k
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
single_stream_modulation.lin = single_stream_modulation.linear
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
"""

# XLabs' attention processors; their suffix `_lora` is part of the spelling of LoRA itself.
XLABS = """
double_blocks.* -> double_blocks.*
  img_attn.qkv = processor.qkv_lora1
  img_attn.proj = processor.proj_lora1
  txt_attn.qkv = processor.qkv_lora2
  txt_attn.proj = processor.proj_lora2
single_blocks.* -> single_blocks.*
  linear1 = processor.qkv+-
  linear2 = processor.proj
"""

REFINER = """
img_in.proj = x_embedder.proj
txt_in.input_embedder = context_embedder.proj_in
txt_in.t_embedder.in_layer = context_embedder.time_text_embed.timestep_embedder.linear_1
txt_in.t_embedder.out_layer = context_embedder.time_text_embed.timestep_embedder.linear_2
txt_in.c_embedder.in_layer = context_embedder.time_text_embed.text_embedder.linear_1
txt_in.c_embedder.out_layer = context_embedder.time_text_embed.text_embedder.linear_2
txt_in.individual_token_refiner.blocks.* -> context_embedder.token_refiner.refiner_blocks.*
  self_attn.qkv = attn.to_q+attn.to_k+attn.to_v
  self_attn.proj = attn.to_out.0
  mlp.0 = ff.net.0.proj
  mlp.2 = ff.net.2
  norm1 = norm1
  norm2 = norm2
  adaLN_modulation.1 = norm_out.linear
"""

# The names of the original code, as musubi-tuner and diffusion-pipe write them.
HUNYUAN_ORIGINAL = """
double_blocks.* -> double_blocks.*
  img_attn.qkv = img_attn_qkv
  img_attn.proj = img_attn_proj
  img_attn.norm.query_norm = img_attn_q_norm
  img_attn.norm.key_norm = img_attn_k_norm
  img_mlp.0 = img_mlp.fc1
  img_mlp.2 = img_mlp.fc2
  img_mod.lin = img_mod.linear
  txt_attn.qkv = txt_attn_qkv
  txt_attn.proj = txt_attn_proj
  txt_attn.norm.query_norm = txt_attn_q_norm
  txt_attn.norm.key_norm = txt_attn_k_norm
  txt_mlp.0 = txt_mlp.fc1
  txt_mlp.2 = txt_mlp.fc2
  txt_mod.lin = txt_mod.linear
single_blocks.* -> single_blocks.*
  norm.query_norm = q_norm
  norm.key_norm = k_norm
  modulation.lin = modulation.linear
txt_in.individual_token_refiner.blocks.* -> txt_in.individual_token_refiner.blocks.*
  self_attn.qkv = self_attn_qkv
  self_attn.proj = self_attn_proj
  mlp.0 = mlp.fc1
  mlp.2 = mlp.fc2
time_in.in_layer = time_in.mlp.0
time_in.out_layer = time_in.mlp.2
guidance_in.in_layer = guidance_in.mlp.0
guidance_in.out_layer = guidance_in.mlp.2
txt_in.t_embedder.in_layer = txt_in.t_embedder.mlp.0
txt_in.t_embedder.out_layer = txt_in.t_embedder.mlp.2
txt_in.c_embedder.in_layer = txt_in.c_embedder.linear_1
txt_in.c_embedder.out_layer = txt_in.c_embedder.linear_2
"""

FLUX_NAMES = Table.parse(DOUBLE, SINGLE, EMBEDDERS, XLABS)
FLUX_2_NAMES = Table.parse(FLUX_2_FIRST, DOUBLE, EMBEDDERS)
HUNYUAN_NAMES = Table.parse(DOUBLE, SINGLE, REFINER, HUNYUAN_ORIGINAL)
CHROMA = Family(
    "Chroma",
    (Mark("distilled_guidance_layer"),),
    FLUX_NAMES.names,
    same_names="distilled_guidance_layer.*(?<!scale)",
    lists=FLUX_NAMES.lists,
    depths={"double_blocks": 19, "single_blocks": 38},
)
FLUX = Family(
    "Flux",
    (
        Mark(r"single_transformer_blocks_\d+_(?:attn_to|proj_mlp|proj_out|norm_linear)", 3072),
        Mark(r"double_blocks_\d+_(?:img|txt)_(?:attn|mlp|mod)", 3072),
        Mark(r"double_blocks_\d+_processor_(?:qkv|proj)_lora", 3072),
    ),
    FLUX_NAMES.names,
    lists=FLUX_NAMES.lists,
    depths={"double_blocks": 19, "single_blocks": 38},
)
FLUX_2 = Family(
    "Flux 2",
    (
        Mark("e_stream_modulation_"),
        Mark(r"single_transformer_blocks_\d+_attn_to_(?:qkv_mlp_proj|out(?!_0))"),
        Mark(r"transformer_blocks_\d+_ff(?:_context)?_linear_(?:in|out)"),
        Mark(r"double_blocks_\d+_(?:img|txt)_(?:attn|mlp)", 6144),
    ),
    FLUX_2_NAMES.names,
    lists=FLUX_2_NAMES.lists,
    depths={"double_blocks": 8, "single_blocks": 48},
)
HUNYUAN_VIDEO = Family(
    "HunyuanVideo",
    (
        Mark(r"double_blocks_\d+_(?:img|txt)_mlp_fc1"),
        Mark(r"double_blocks_\d+_(?:img|txt)_mod_linear"),
        Mark("txt_in_individual_token"),
        Mark("context_embedder_token_refiner"),
    ),
    HUNYUAN_NAMES.names,
    lists=HUNYUAN_NAMES.lists,
    depths={"double_blocks": 20, "single_blocks": 40},
)
