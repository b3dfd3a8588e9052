"""The UNet families of Stable Diffusion: told apart by the width of the text they attend to."""

from .family import Family, Mark

SD1 = Family("SD 1.x", (Mark("attn2_to_k", 768), Mark("attn2_to_v", 768)))
SD2 = Family("SD 2.x", (Mark("attn2_to_k", 1024), Mark("attn2_to_v", 1024)))
SDXL = Family(
    "SDXL",
    (
        Mark("attn2_to_k", 2048),
        Mark("attn2_to_v", 2048),
        Mark("blocks_4_1_transformer_blocks_1_"),
        Mark("lora_te2_text_model"),
    ),
)
SDXL_REFINER = Family("SDXL refiner", (Mark("attn2_to_k", 1280), Mark("attn2_to_v", 1280)))
