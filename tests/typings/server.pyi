from collections.abc import Mapping
from typing import Any

class PromptServer:
    instance: PromptServer
    def send_progress_text(self, text: str, node_id: str) -> None: ...
    def send_sync(self, event: str, data: Mapping[str, Any]) -> None: ...
