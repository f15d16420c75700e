"""Which text-to-image model a sweep uses."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.schema.base import NOT_HASHED, Frozen, Text

Precision = Literal["fp32", "fp16", "bf16"]
CHECKPOINT = ".safetensors"  # how a source ends that is one file


class EmojiModel(Frozen):
    """The embedded model: 64 px, an image in a fraction of a second on a CPU, weights inside the package."""

    kind: Literal["emoji"] = "emoji"
    digest: Annotated[str | None, Field(description="hash of the weights; filled in when read")] = None

    @property
    def precision(self) -> Precision:
        """Always fp32: bf16 convolutions are an order of magnitude slower on most CPUs."""
        return "fp32"


class SdxlModel(Frozen):
    """SDXL 1.0 or a model of the same classes, from the hub, from a local folder or from one file.

    A file (.safetensors) has the names of Stability AI's own code. It is read as SDXL 1.0, or by the
    configurations and with the tokenizers of the folder `config`.

    `source: random` is the published architecture with random weights, for measuring speed and memory where
    there are no weights; its `refiner` is then `random` or null, and its `vae` null.
    """

    kind: Literal["sdxl"] = "sdxl"
    source: Annotated[
        Text, Field(description="hub id, a folder in diffusers' layout, a .safetensors file, or random")
    ] = "stabilityai/stable-diffusion-xl-base-1.0"
    revision: str | None = None
    config: Annotated[  # what is in it is part of the digest
        str | None,
        Field(description="folder with the configurations of a source in one file; null: SDXL's"),
        NOT_HASHED,
    ] = None
    refiner: Annotated[
        str | None, Field(description="hub id, folder or file of the refiner; null for base alone")
    ] = "stabilityai/stable-diffusion-xl-refiner-1.0"
    refiner_revision: str | None = None
    vae: Annotated[str | None, Field(description="a VAE in place of the model's own")] = (
        "madebyollin/sdxl-vae-fp16-fix"
    )
    vae_revision: str | None = None
    variant: Annotated[
        Literal["fp16"] | None, Field(description="which weight files to read"), NOT_HASHED
    ] = "fp16"
    precision: Precision = "fp16"
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        Field(description="what the UNet predicts; null: what the model's scheduler says"),
    ] = None
    digest: Annotated[
        str | None, Field(description="hash of local folders and files; filled in when read")
    ] = None

    @model_validator(mode="after")
    def _of_one_file(self) -> "SdxlModel":
        in_a_file = self.source.endswith(CHECKPOINT)
        if self.config is not None and not in_a_file:
            raise ValueError(f"config is of a source in one {CHECKPOINT} file; remove it")
        if self.revision is not None and in_a_file:
            raise ValueError("revision is of a hub id, and source is a file; remove it")
        return self

    @model_validator(mode="after")
    def _random_throughout(self) -> "SdxlModel":
        if self.source == "random" and (self.refiner not in ("random", None) or self.vae is not None):
            raise ValueError("source: random takes refiner: random or null, and vae: null")
        if self.source != "random" and "random" in (self.refiner, self.vae):
            raise ValueError("refiner and vae can be random only where source is")
        return self

    def how(self) -> set[str]:
        """A local folder's path says where; once the digest is known, that says what."""
        sources = {"source": self.source, "refiner": self.refiner, "vae": self.vae}
        local = {name for name, source in sources.items() if source and Path(source).is_absolute()}
        return super().how() | (local if self.digest else set())


ModelConfig = Annotated[EmojiModel | SdxlModel, Field(discriminator="kind")]
