"""The pack's mathematics and formats: torch, safetensors and the standard library, never the host."""
