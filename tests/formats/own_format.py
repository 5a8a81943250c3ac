"""A format of the user's own, as the text of a module."""

OWN = '''
"""A format of my own."""

from dataclasses import dataclass

from phi3v_data.formats.tagged import TaggedFormat


@dataclass(frozen=True)
class Mine(TaggedFormat):
    """My rows."""

    name = "mine"
    title = "My tool"
    consumer = "mine"
    message_keys = ("talk",)
    role_keys = ("who",)
    content_keys = ("says",)
    image_keys = ("pics",)
    roles_read = {"q": "user", "a": "assistant"}
    roles_written = {"user": "q", "assistant": "a"}

    def recognizes(self, row):
        return "talk" in row
'''
