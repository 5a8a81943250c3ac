"""Fireworks's fine-tuning on images; its limits are in `limits.py`."""

from phi3v_data.formats.consumers.limits import LIMITS, Service


class Fireworks(Service):
    """Fireworks."""

    name = "fireworks"
    title = "Fireworks"
    limits = LIMITS["fireworks"]
