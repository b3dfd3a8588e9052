"""The nodes of the pack."""

from comfy_api.latest import ComfyExtension, io

from .combining import CombineAdapters
from .conditioning import AdapterForConditioning
from .converting import ConvertAdapter
from .datasets import ImageFolder, ImagesAndCaptions, LatentsAndConditionings
from .extracting import ExtractAdapter
from .inspecting import InspectAdapter
from .loading import LoadAdapter
from .merging import BakeIntoModel
from .opening import OpenAdapter
from .routes import register_routes
from .saving import SaveAdapter
from .scheduling import AdapterSchedule
from .stacking import AdapterStack
from .sweeping import BlockSweep, LabelGrid
from .training import TrainAdapter
from .training_options import (
    BlocksAndLayers,
    MethodOptions,
    NoiseAndLoss,
    OptimizerOptions,
    TrainingSamples,
)

NODES: list[type[io.ComfyNode]] = [
    LoadAdapter,
    AdapterStack,
    AdapterSchedule,
    AdapterForConditioning,
    InspectAdapter,
    BakeIntoModel,
    ExtractAdapter,
    OpenAdapter,
    SaveAdapter,
    ConvertAdapter,
    CombineAdapters,
    BlockSweep,
    LabelGrid,
    ImageFolder,
    ImagesAndCaptions,
    LatentsAndConditionings,
    TrainAdapter,
    MethodOptions,
    OptimizerOptions,
    NoiseAndLoss,
    BlocksAndLayers,
    TrainingSamples,
]

register_routes()


class AnyAdapterExtension(ComfyExtension):
    """Tells the host which nodes there are."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Returns the node classes."""
        return NODES
