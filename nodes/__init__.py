"""What the user sees: schemas, tooltips and errors at queue time; the maths is in model_patches."""

import logging

import comfyui_version
from comfy_api.latest import ComfyExtension
from typing_extensions import override

from .choice import ChooseGuidance
from .direction_distillation import DistillGuidanceDirection
from .direction_files import LoadGuidanceDirection, SaveGuidanceDirection
from .directions import CombineGuidanceDirections, EncodeGuidanceDirection, GuidanceDirectionFromConditioning, GuidancePreset
from .guidance import ApplyModulationGuidance
from .host_version import too_old
from .inspection import InspectGuidance
from .modulation_guidance import ModulationGuidance
from .projection_distillation import DistillPooledProjection
from .projections import LoadPooledProjection, SavePooledProjection
from .schedules import GuidanceLayerSchedule, GuidanceLayerScheduleCurve, GuidanceLayerScheduleText
from .scorers import LoadPictureScorer, ScorePictures
from .sweep import GuidanceGrid, SweepModulationGuidance
from .variance import ScaleTextVariance


class ModulationGuidanceExtension(ComfyExtension):
    @override
    async def get_node_list(self):
        return [
            ModulationGuidance,
            EncodeGuidanceDirection,
            GuidanceDirectionFromConditioning,
            CombineGuidanceDirections,
            GuidancePreset,
            LoadGuidanceDirection,
            SaveGuidanceDirection,
            GuidanceLayerSchedule,
            GuidanceLayerScheduleCurve,
            GuidanceLayerScheduleText,
            ApplyModulationGuidance,
            LoadPooledProjection,
            SavePooledProjection,
            DistillPooledProjection,
            DistillGuidanceDirection,
            ScaleTextVariance,
            InspectGuidance,
            SweepModulationGuidance,
            GuidanceGrid,
            LoadPictureScorer,
            ScorePictures,
            ChooseGuidance,
        ]


async def comfy_entrypoint() -> ModulationGuidanceExtension:
    if complaint := too_old(comfyui_version.__version__):
        logging.warning(complaint)
    return ModulationGuidanceExtension()
