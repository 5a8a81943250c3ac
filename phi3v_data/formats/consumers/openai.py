"""OpenAI's fine-tuning on images; its limits are in `limits.py`."""

from phi3v_data.formats.consumers.limits import LIMITS, Service


class OpenAI(Service):
    """OpenAI."""

    name = "openai"
    title = "OpenAI"
    limits = LIMITS["openai"]
    local_paths = "warning"  # such files are kept for other tools
