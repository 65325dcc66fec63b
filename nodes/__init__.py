"""What the user sees: schemas, tooltips and errors at queue time; the maths is in model_patches."""

from comfy_api.latest import ComfyExtension
from typing_extensions import override

from .directions import CombineGuidanceDirections, EncodeGuidanceDirection, GuidanceDirectionFromConditioning, GuidancePreset
from .guidance import ApplyModulationGuidance
from .projections import LoadPooledProjection, SavePooledProjection
from .schedules import GuidanceLayerSchedule, GuidanceLayerScheduleCurve, GuidanceLayerScheduleText
from .variance import ScaleTextVariance


class ModulationGuidanceExtension(ComfyExtension):
    @override
    async def get_node_list(self):
        return [
            EncodeGuidanceDirection,
            GuidanceDirectionFromConditioning,
            CombineGuidanceDirections,
            GuidancePreset,
            GuidanceLayerSchedule,
            GuidanceLayerScheduleCurve,
            GuidanceLayerScheduleText,
            ApplyModulationGuidance,
            LoadPooledProjection,
            SavePooledProjection,
            ScaleTextVariance,
        ]


async def comfy_entrypoint() -> ModulationGuidanceExtension:
    return ModulationGuidanceExtension()
