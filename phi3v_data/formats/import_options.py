"""Options of `phi3v-data import`."""

from pydantic import Field

from phi3v_data.draft import Options

AUTO = "auto"


class ImportOptions(Options):
    """Options of every import."""

    data: str = Field("", description="The data file, or the entry of dataset_info.json, if SRC contains several.")
    images_root: str = Field(
        "",
        exclude=True,
        description="Folder that image paths are relative to, or an address (s3://BUCKET/PREFIX, gs://, hf://), from "
        "which the images are copied. Default: the folder of the data file.",
    )
    merge_turns: bool = Field(False, description="Join consecutive messages of one role, instead of rejecting the row.")
    model: str = Field(
        "",
        description="Model family or directory whose control tokens reject a row. Default: phi3v.",
    )
    fetch: bool = Field(False, description="Download images that are URLs, but none from private addresses.")


class ImportSettings(ImportOptions):
    """The options with the format, as the converter gets them."""

    format: str = Field(AUTO, description="Name of the format; auto: guessed for each file.")
    format_file: str = Field("", exclude=True, description="FILE.py:NAME of a format of the user's own.")
    format_digest: str = Field("", description="Digest of that file.")
    images_address: str = Field("", description="The address of `images_root`, if it is one.")
    downloads: str = Field("", exclude=True, description="Folder for downloads.")
