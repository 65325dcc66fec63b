"""The real server and its editor in a real browser, one of each for all tests of this folder.

Where there is no Chromium the tests are skipped, unless MODULATION_GUIDANCE_BROWSER is "required".
MODULATION_GUIDANCE_FRONTEND names a version of the editor in place of the host's own (tools/frontend.py has them).
"""

import os
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
sys.path.insert(1, str(CHECKOUT))  # after the host's own folder, whose modules go first

from tools.browser import find_chromium, open_editor
from tools.frontend import frontend_arguments
from tools.host import ensure_host
from tools.pinned import cache_folder
from tools.server import Client, running_server
from tools.small_models import write_small_models


@pytest.fixture(scope="session")
def client():
    models = cache_folder() / "small-world"
    write_small_models(models)
    host = ensure_host()
    with running_server(host, [models], frontend_arguments(host)) as url:
        yield Client(url)


@pytest.fixture(scope="module")  # not longer: while playwright runs, asyncio.run of later tests is refused
def opened(client):
    chromium = find_chromium()
    if chromium is None or not has_playwright():
        what = "There is no Chromium (apt-get install chromium)" if chromium is None else "There is no playwright (tests/requirements.txt)"
        if os.environ.get("MODULATION_GUIDANCE_BROWSER") == "required":
            pytest.fail(f"{what}, and the tests of the editor are required here.")
        pytest.skip(f"{what}: the tests of the editor need it.")
    with open_editor(client.url, chromium) as editor:
        yield editor


def has_playwright():
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture
def editor(opened):
    """The editor with an empty graph; afterwards, nothing of ours may have been complained about."""
    opened.problems.clear()
    opened.clear()
    yield opened
    assert not opened.problems


@pytest.fixture(scope="module", params=["old", "new"])  # so that tests in one rendering follow each other: opening takes seconds
def in_rendering(request):
    return request.param


@pytest.fixture
def rendering(in_rendering, editor):
    """Both renderings of nodes that the editor has."""
    editor.render_nodes(in_rendering == "new")
    return in_rendering
