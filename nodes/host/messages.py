"""Text on a node in the page."""

from server import PromptServer


def show_text(node_id: str, text: str) -> None:
    """Shows `text` on a node while and after it runs."""
    PromptServer.instance.send_progress_text(text, node_id)
