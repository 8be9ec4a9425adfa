"""The picture side of the conditions: portrait, masked face, motion frames, and what of a decoded window is kept.

A window is one generation: its first frames repeat the last ones of the window before (the motion frames), the others
are new. The transformer sees the portrait twice: with the motion frames as the first latent frame of the condition
latents, and with everything but the face blacked out as reference latents (Cui et al. 2024, "Hallo3", section 3.2).

All draws come from outside, so that a run can be repeated: the posterior's noise, and the keep draws of the pixel mask.
Shapes: B batch, T frames, t latent frames, C channels, H W pixels, h w latent grid, P landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from omokage.errors import InputError, NoFaceError
from omokage.media.clip import Image
from omokage.talking.vae import CausalVae

# In front of the motion frames, the clip that becomes the first latent frame holds the portrait itself.
MOTION_FRAMES = 2
# Share of the motion frames' pixels that are hidden, so that errors of earlier windows are not copied on.
HIDDEN_SHARE = 0.1
FACE_ENLARGEMENT = 1.2


@dataclass(frozen=True, slots=True)
class FaceRectangle:
    """Rows `top` to `bottom` and columns `left` to `right` of a picture, in pixels, ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Pixels inside."""
        return (self.bottom - self.top) * (self.right - self.left)


def prepare_portrait(picture: Tensor, height: int, width: int) -> Tensor:
    """Bring a picture (C, H, W) in [0, 1] to the size of the video -> (C, height, width) in about [-1, 1].

    A square one keeps all it shows: bilinear to `height`, black to both sides. Any other is enlarged or reduced to
    cover the frame, bicubic, and cut around its middle; bicubic edges overshoot [-1, 1] by up to a tenth, which the
    released pipeline leaves as it is. Raises InputError when a square does not fit between the sides.
    """
    rows, columns = picture.shape[-2:]
    batch = picture[None]
    if rows == columns:
        if width < height or (width - height) % 2:
            raise InputError(
                f"a square portrait needs a frame that is wider than high by an even number of pixels, "
                f"got {width}x{height}"
            )
        side = (width - height) // 2
        square = F.interpolate(batch, (height, height), mode="bilinear", antialias=True, align_corners=False)
        return F.pad(square, (side, side))[0].clamp(0, 1) * 2 - 1
    if columns * height > rows * width:
        grid = (height, columns * height // rows)
    else:
        grid = (rows * width // columns, width)
    covering = F.interpolate(batch, grid, mode="bicubic", antialias=True, align_corners=False)
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    return covering[0, :, top : top + height, left : left + width] * 2 - 1


def face_rectangle(
    landmarks: NDArray[np.floating], height: int, width: int, enlargement: float = FACE_ENLARGEMENT
) -> FaceRectangle:
    """The rectangle around a face outline, enlarged about its middle and shifted back into the picture.

    landmarks: (478, 2) x, y in pixels of the picture, MediaPipe's numbering; height, width of the picture.
    A face too large for its enlarged rectangle gets the whole side. (The released pipeline shifts such a rectangle out
    at the other side and keeps a strip of a few pixels.) Raises NoFaceError when the outline is outside the picture.
    """
    from omokage.tracking.morphable import MorphableModel  # whose rasteriser takes seconds to load

    outline = np.asarray(landmarks, dtype=np.float64)[MorphableModel.load().face_oval, :2]
    low, high = (np.rint(edge(axis=0)).astype(int) for edge in (outline.min, outline.max))
    sides = []
    for start, stop, limit in ((low[1], high[1], height), (low[0], high[0], width)):
        middle, half = int(start + stop) // 2, int((stop - start) * enlargement) // 2
        first, last = middle - half, middle + half
        shift = -first if first < 0 else min(limit - last, 0)
        sides.append((max(first + shift, 0), min(last + shift, limit)))
    (top, bottom), (left, right) = sides
    if high[0] <= 0 or high[1] <= 0 or low[0] >= width or low[1] >= height or top >= bottom or left >= right:
        raise NoFaceError(
            "the face lies outside the picture; use a portrait that shows the whole face with some room around it"
        )
    return FaceRectangle(top, bottom, left, right)


def mask_face(picture: Tensor, face: FaceRectangle) -> Tensor:
    """A picture (C, H, W) in [0, 1] with everything but the face black; what the reference latents are made of."""
    masked = torch.zeros_like(picture)
    rows, columns = slice(face.top, face.bottom), slice(face.left, face.right)
    masked[..., rows, columns] = picture[..., rows, columns]
    return masked


def first_motion(portrait: Tensor) -> Tensor:
    """Motion frames (B, 2, 3, H, W) of the first window: the portrait (B, 3, H, W) itself."""
    return portrait[:, None].expand(-1, MOTION_FRAMES, -1, -1, -1)


def condition_clip(portrait: Tensor, motion: Tensor, keep: Tensor) -> Tensor:
    """The clip (B, 3, 3, H, W) that becomes the first condition latent: the portrait, then both motion frames.

    portrait (B, 3, H, W), motion (B, 2, 3, H, W) in [-1, 1]; keep: (H, W) uniform draws in [0, 1), new ones for each
    window. Where they are at most `HIDDEN_SHARE` both motion frames become 0 (grey); the portrait stays whole.
    """
    hidden = motion * (keep > HIDDEN_SHARE).to(motion.dtype)
    return torch.cat([portrait[:, None], hidden], dim=1)


def condition_latents(
    vae: CausalVae, clip: Tensor, latent_frames: int, noise: Tensor | None = None
) -> Tensor:
    """Condition latents (B, t, C, h, w): the clip of `condition_clip` encoded together as one, then zeros.

    noise: unit Gaussian (B, 1, C, h, w) for the posterior, None for its mean.
    """
    first = vae.encode(clip, noise)
    rest = first.new_zeros(first.shape[0], latent_frames - first.shape[1], *first.shape[2:])
    return torch.cat([first, rest], dim=1)


def reference_latents(vae: CausalVae, masked: Tensor, noise: Tensor | None = None) -> Tensor:
    """Reference latents (B, 1, C, h, w) of the prepared masked portrait (B, 3, H, W) in [-1, 1].

    noise: unit Gaussian of their shape for the posterior, None for its mean.
    """
    return vae.encode(masked[:, None], noise)


def next_motion(video: Tensor) -> Tensor:
    """Motion frames (B, 2, 3, H, W) for the window after a decoded one (B, T, 3, H, W): its last frames in [-1, 1]."""
    return video[:, -MOTION_FRAMES:].clamp(-1, 1)


def to_image(frame: Tensor, *, square: bool) -> Image:
    """A decoded frame (3, H, W) in about [-1, 1] as 8-bit picture, fractions cut off; `square` takes the bars away."""
    if square:
        side = (frame.shape[-1] - frame.shape[-2]) // 2
        frame = frame[..., side : frame.shape[-1] - side]
    levels = ((frame.float() + 1) / 2).clamp(0, 1) * 255
    picture: Image = levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    return picture
