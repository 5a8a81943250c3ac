"""Azure's fine-tuning on images; its limits are in `limits.py`."""

from phi3v_data.formats.consumers.limits import LIMITS, Service


class Azure(Service):
    """Azure."""

    name = "azure"
    title = "Azure"
    limits = LIMITS["azure"]
