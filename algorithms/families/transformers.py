"""The transformer families: told by names of layers that only they have."""

from .family import Family, Mark

SD3 = Family("SD 3", (Mark("joint_blocks_"), Mark("transformer_blocks_0_attn2_to_q", 1536)))
FLUX = Family("Flux", (Mark("single_transformer_blocks_"), Mark("double_blocks_0_img_attn", 3072)))
CHROMA = Family("Chroma", (Mark("distilled_guidance_layer"),))
HUNYUAN_VIDEO = Family("HunyuanVideo", (Mark("img_mlp_fc1"), Mark("txt_in_individual_token")))
WAN = Family("Wan", (Mark("blocks_0_self_attn_q"), Mark("blocks_0_cross_attn_k")))
QWEN_IMAGE = Family("Qwen-Image", (Mark("transformer_blocks_0_img_mlp_net"),))
Z_IMAGE = Family("Z-Image", (Mark("layers_0_attention_to_q"), Mark("layers_0_attention_qkv")))
