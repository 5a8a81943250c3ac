"""Together's fine-tuning on images; its limits are in `limits.py`."""

from phi3v_data.formats.consumers.limits import LIMITS, Service


class Together(Service):
    """Together."""

    name = "together"
    title = "Together"
    limits = LIMITS["together"]
