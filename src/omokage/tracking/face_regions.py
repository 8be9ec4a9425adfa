"""Names for the vertices of the face mesh (MediaPipe's numbering), used for sculpting, fitting and weighting.

The lists are for the subject's left side, which is on the right of the picture (x > 0); `MorphableModel.mirror`
gives the other side. Runs go from the middle of the face outwards, or from the inner to the outer corner.
"""

from __future__ import annotations

# Four rows of each lip, from its outer edge to its inner edge; columns from the middle to the corner.
UPPER_LIP = (
    (0, 267, 269, 270, 409, 291),
    (11, 302, 303, 304, 408, 306),
    (12, 268, 271, 272, 407, 292),
    (13, 312, 311, 310, 415, 308),
)
LOWER_LIP = (
    (17, 314, 405, 321, 375, 291),
    (16, 315, 404, 320, 307, 306),
    (15, 316, 403, 319, 325, 292),
    (14, 317, 402, 318, 324, 308),
)
# Lid edges and the two rings around them, inner to outer corner, corners left out.
UPPER_LID = (398, 384, 385, 386, 387, 388, 466)
LOWER_LID = (382, 381, 380, 374, 373, 390, 249)
UPPER_LID_RING = (414, 286, 258, 257, 259, 260, 467)
LOWER_LID_RING = (341, 256, 252, 253, 254, 339, 255)
UPPER_LID_CREASE = (413, 441, 442, 443, 444, 445, 342)
LOWER_LID_BAG = (453, 452, 451, 450, 449, 448, 261)
EYE_CORNERS = (362, 263)
EYE_RING_CORNERS = (463, 359)
BROW_UPPER = (336, 296, 334, 293, 300)
BROW_LOWER = (285, 295, 282, 283, 276)
FOREHEAD = (337, 299, 333, 298, 301)
CHEEK = (280, 425, 427, 411, 352, 346, 347, 330, 266, 426)
NOSE_WING = (294, 358, 327, 278, 279, 331, 429, 420, 360)
NOSE_RIDGE = (168, 6, 197, 195, 5, 4, 1)
CHIN = (152, 175, 199, 200, 18)
# The outline from the chin to the top of the forehead.
OVAL = (152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356, 389, 251, 284, 332, 297, 338, 10)

LANDMARK_COUNT = 478
SKIN_COUNT = 468
# First iris landmark (the center) of the picture's left and right eye; four ring points follow each.
IRIS_CENTERS = (468, 473)
