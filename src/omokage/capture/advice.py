"""What to do about each finding of the capture check: one plain sentence that names the fix.

docs/capture-guide.md tells the same beforehand; a test holds both together.
"""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """Sentences for a value below and above its limits; empty where there is no such limit."""

    too_low: str = ""
    too_high: str = ""


_CLOSER = Advice("Move the camera closer or record at a higher resolution.")

ADVICE: dict[str, Advice] = {
    # Person
    "face found": Advice(
        "Keep the face in the picture and uncovered all the time: no hands, no turning away."
    ),
    "second face": Advice(
        too_high="Record one person alone, and cover posters, screens and mirrors that show another face."
    ),
    "usable face": Advice("Record longer: one to five minutes of lively talk, alone in the picture."),
    # Framing
    "face width": _CLOSER,
    "face, chin to brow": _CLOSER,
    "pupil distance": _CLOSER,
    "face in the picture": Advice(
        "Move closer until head and shoulders fill at least half of the picture's height.",
        "Move back until hair and shoulders fit into the picture.",
    ),
    "head leaves picture": Advice(
        too_high="Leave a hand's breadth of room above the hair and on both sides of the head."
    ),
    # Picture
    "sharpness": Advice(
        "Clean the lens, focus on the eyes, turn beauty filters off, and use more light and less zoom."
    ),
    "brightness": Advice(
        "Move the lamp behind the camera, pointing at the face, and keep windows out of the picture.",
        "Dim the lamp, move it away or lower the camera's exposure.",
    ),
    "black or white skin": Advice(
        too_high="Soften the light with a white wall or curtain, and lock the exposure on the face."
    ),
    "contrast": Advice("Clean the lens and keep bright windows from behind the person."),
    "uneven light": Advice(
        too_high="Move the lamp behind the camera, so that both halves of the face are equally bright."
    ),
    # Movement of the face
    "turning, left to right": Advice(
        "Turn the head slowly to the left and to the right, as far as both eyes stay visible."
    ),
    "farthest turn": Advice(too_high="Turn the head less far: both eyes should stay visible."),
    "nodding, up and down": Advice("Raise and lower the chin slowly."),
    "tilting, side to side": Advice("Tilt the head slowly towards each shoulder."),
    "widest mouth": Advice("Open the mouth wide a few times: say a long 'ah', laugh, yawn."),
    "mouth width, range": Advice("Smile broadly and round the lips: say 'ee' and 'oo' a few times."),
    "mouth shapes": Advice("Talk more, and more clearly: count aloud, read a page with feeling."),
    "blinks": Advice("Blink naturally, and close the eyes for a moment now and then."),
    "gaze, left to right": Advice(
        "Keep the head still and let the eyes wander to the left and right edge of the picture."
    ),
    "gaze, up and down": Advice("Keep the head still and look at the ceiling and at the table."),
    "face at rest": Advice(
        "Begin and end with three seconds of looking into the camera, mouth closed and relaxed."
    ),
    # Stillness
    "cuts": Advice(too_high="Use one uncut take, or cut the file where it jumps and give one part."),
    "camera movement": Advice(
        too_high="Put the camera on a tripod or a pile of books, and turn zoom and stabilization off."
    ),
    "background movement": Advice(
        too_high="Sit before a still wall: no people, screens, curtains or changing light behind you."
    ),
    # File
    "frame rate": Advice("Set the camera to 25 or 30 frames a second; more light helps it to keep that."),
    "variable frame rate": Advice(
        too_high="Choose a constant frame rate in the camera app; until then omokage evens it out."
    ),
    "repeated frames": Advice(
        too_high="Close other programs while recording, or use a camera app instead of a call recording."
    ),
    "shorter side": Advice("Record at 720p or 1080p."),
    # Sound
    "loudness of speech": Advice(
        "Speak up or bring the microphone closer.", "Move the microphone away or lower its gain."
    ),
    "speech above noise": Advice(
        "Bring the microphone closer, turn music and fans off, and pause between sentences."
    ),
    "clipped sound": Advice(too_high="Lower the microphone's gain: the loudest parts are cut off."),
    "sample rate": Advice("Record the sound at 44100 or 48000 Hz."),
}
HIDDEN_FACE = "Most of the recording does not show one face alone; see to the two findings above first."
NO_SOUND = "There is no sound track; record with a microphone if the avatar shall speak."
SILENT_SOUND = "The sound track is silent; switch the microphone on if the avatar shall speak."
