"""Small models of every family, one file each.

FAMILIES: one of each kind of y. VARIANTS: models of the same families that differ beside y.
"""

from .hidream import HIDREAM_E1, HIDREAM_I1
from .hunyuan_dit import HUNYUAN_DIT_11, HUNYUAN_DIT_12
from .hunyuan_video import CONCAT, REPLACE, REPLACE_EMBEDDED_GUIDANCE, SKYREELS, TEXT_TO_VIDEO
from .kandinsky5 import KANDINSKY5_IMAGE, KANDINSKY5_VIDEO
from .mochi import MOCHI
from .newbie import NEWBIE
from .sd3 import SD3, SD35_LARGE, SD35_MEDIUM

FAMILIES = (SD35_MEDIUM, HIDREAM_I1, TEXT_TO_VIDEO, REPLACE, KANDINSKY5_VIDEO, NEWBIE, MOCHI, HUNYUAN_DIT_11)
VARIANTS = (SD3, SD35_LARGE, HIDREAM_E1, CONCAT, SKYREELS, REPLACE_EMBEDDED_GUIDANCE, KANDINSKY5_IMAGE, HUNYUAN_DIT_12)
