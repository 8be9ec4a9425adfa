"""`omokage import styleavatar`: an official checkpoint becomes an avatar file. MAIN: `import_styleavatar`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omokage import __version__
from omokage.avatar.paper.bundle import Origin, PaperAvatar
from omokage.avatar.paper.checkpoint import read_styleavatar
from omokage.avatar.paper.config import (
    DiscriminatorConfig,
    PortraitConfig,
    released_discriminator,
    released_portrait,
)
from omokage.avatar.paper.portrait import PortraitGenerator, draw_noise
from omokage.avatar.paper.time_code import RELEASED_TIME
from omokage.config import Progress, ProgressCallback, ignore_progress
from omokage.files import file_digest
from omokage.pipelines.carry import save_avatar

NOISE_SEED = 0


@dataclass(frozen=True)
class ImportConfig:
    """network, discriminator: what the checkpoint must hold.  keep_training: also what further training starts from."""

    network: PortraitConfig = field(default_factory=released_portrait)
    discriminator: DiscriminatorConfig = field(default_factory=released_discriminator)
    keep_training: bool = False


@dataclass(frozen=True)
class ImportResult:
    """path: of the avatar file.  size: of its pictures, pixels.  weights: of its generator.  kept: other networks."""

    path: Path
    size: int
    weights: int
    kept: tuple[str, ...]

    def to_text(self) -> str:
        """What was kept, and what can be done with it, for people."""
        others = f"; for training: {', '.join(self.kept)}" if self.kept else ""
        return (
            f"kept: averaged image generator ({self.weights / 1e6:.1f} million weights, pictures of {self.size} "
            f"pixels), textures of face and background{others}\n"
            "works: from Python, PaperAvatar.load(...).draw(render, uv) gives the official network's pictures for face "
            "meshes that the official preprocessing drew\n"
            "does not work: 'omokage reenact' and 'omokage evaluate', which draw another face mesh"
        )


def import_styleavatar(
    checkpoint: Path,
    *,
    output: Path,
    config: ImportConfig | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> ImportResult:
    """Read an official .pt of the full StyleAvatar in a restricted way and write it as an avatar file.

    Raises InputError when the checkpoint cannot be read safely or is of another network, OutputError when the file
    cannot be written.
    """
    config = config or ImportConfig()
    on_progress(Progress("reading", 0, 2, checkpoint.name))
    official = read_styleavatar(checkpoint, config.network, config.discriminator)
    generator = PortraitGenerator(config.network)
    generator.load_state_dict(official.generator, assign=True)
    avatar = PaperAvatar(
        generator.eval().requires_grad_(False),
        official.face,
        official.background,
        # The official code draws noise anew for every run: here it is drawn once, and kept.
        draw_noise(config.network, NOISE_SEED),
        RELEASED_TIME,
        Origin(checkpoint.name, file_digest(checkpoint), __version__),
        official.training if config.keep_training else {},
    )
    on_progress(Progress("writing", 1, 2, output.name))
    save_avatar(avatar, output)
    on_progress(Progress("writing", 2, 2))
    weights = sum(parameter.numel() for parameter in generator.parameters())
    return ImportResult(output, config.network.size, weights, tuple(avatar.training))
