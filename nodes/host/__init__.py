"""The only folder that touches ComfyUI itself."""
