"""The pack's own types of sockets."""

from comfy_api.latest import io

ScheduleSocket = io.Custom("ANYADAPTER_SCHEDULE")
"""Carries a `Schedule`."""
