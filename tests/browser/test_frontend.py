"""The version of the editor that the other tests here drive."""

import os
from importlib.metadata import version

import pytest

from tools.frontend import frontend_arguments
from tools.host import ensure_host
from tools.packages import SetupError


def test_the_editor_is_of_the_version_asked_for(editor):
    wanted = os.environ.get("MODULATION_GUIDANCE_FRONTEND") or version("comfyui-frontend-package")
    assert editor.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__") == wanted


def test_a_version_that_is_not_pinned_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("MODULATION_GUIDANCE_FRONTEND", "1.0.0")
    with pytest.raises(SetupError, match=r"MODULATION_GUIDANCE_FRONTEND is 1\.0\.0; there is 1\.58\.1"):
        frontend_arguments(ensure_host())
