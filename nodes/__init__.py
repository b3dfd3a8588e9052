"""The nodes of the pack."""

from comfy_api.latest import ComfyExtension, io

from .loading import LoadAdapter

NODES: list[type[io.ComfyNode]] = [LoadAdapter]


class AnyAdapterExtension(ComfyExtension):
    """Tells the host which nodes there are."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the node classes."""
        return NODES
