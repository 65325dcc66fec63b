"""ComfyUI's editor in a headless Chromium, driven by playwright."""

import contextlib
import os
import shutil

from tools.server import PACK, Client

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # what is asked of the network fails at once
]
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.Locale": "en"}
READY = "window.app?.extensionManager?.setting && app.canvas && document.querySelector('[data-testid=queue-button]')"
OPENED = "app.graph?.nodes.length && !app.configuringGraph"  # the workflow that an editor without one opens with


def find_chromium():
    """The path of an installed Chromium, or None. CHROMIUM names another one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Editor:
    """An open editor. page: playwright's; problems: what the console and uncaught errors said that concerns this pack."""

    def __init__(self, browser, client, width, height):
        self.browser, self.client, self.size = browser, client, {"width": width, "height": height}
        self.page = None
        self.new = None  # the rendering, once one was asked for
        self.problems = []
        for name, value in SETTINGS.items():
            client.post(f"/settings/{name}", value)
        self.open()

    @property
    def version(self):
        """(1, 47, 12)"""
        return tuple(map(int, self.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__").split(".")))

    def _note(self, text):
        if PACK in text:
            self.problems.append(text)

    def open(self):
        """Opens the editor anew, as somebody who was never there: no draft of the graph is left, and nothing asks to stay on the page."""
        if self.page:
            self.page.context.close()
        self.client.post("/settings/Comfy.RightSidePanel.IsOpen", False)  # kept with the server; it covers the graph and shows inputs twice
        self.page = page = self.browser.new_context(viewport=self.size).new_page()
        page.on("console", lambda message: self._note(f"{message.text} {message.location.get('url')}") if message.type == "error" else None)
        page.on("pageerror", lambda error: self._note(f"{error} {error.stack}"))
        page.goto(self.client.url)
        page.wait_for_function(READY, timeout=60_000)
        page.wait_for_function(OPENED, timeout=60_000)

    def render_nodes(self, new):
        """An empty graph in the new rendering of nodes (Nodes 2.0) or the old one; the editor is opened anew where it is in the other."""
        if new is not self.new:
            self.client.post("/settings/Comfy.VueNodes.Enabled", new)
            self.open()
            self.new = new
        self.clear()
        self.page.wait_for_function("on => on === !!document.querySelector('[data-testid=transform-pane]')", arg=new)

    def load(self, workflow):
        """Opens a workflow (graph format)."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def add(self, node_type, position=(0, 0), **values):
        """Adds a node to the graph and returns its id."""
        return self.page.evaluate(
            """([type, position, values]) => {
                const node = LiteGraph.createNode(type)
                node.pos = position
                app.graph.add(node)
                for (const [name, value] of Object.entries(values)) node.widgets.find((widget) => widget.name === name).value = value
                return node.id
            }""",
            [node_type, list(position), values],
        )

    def clear(self):
        """An empty graph, seen unscaled with its origin near the upper left."""
        # Of a graph that is only cleared, the editor gives the values of its nodes to the next ones of the same number.
        self.load({"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []})
        self.look_at((-80, -90), 1)

    def look_at(self, corner, scale):
        """Puts the point `corner` of the graph into the upper left of the window."""
        self.page.evaluate(
            "([x, y, scale]) => { app.canvas.ds.scale = scale; app.canvas.ds.offset = [-x, -y]; app.canvas.setDirty(true, true) }",
            [*corner, scale],
        )

    def bounds(self, margin=0):
        """(left, top, width, height) of everything in the graph, in its own units."""
        return self.page.evaluate(
            """(margin) => {
                const boxes = [...app.graph.nodes, ...app.graph.groups].map((item) => item.getBounding ? [...item.getBounding()] : [...item.boundingRect])
                const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])) - margin)
                const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])) + margin)
                return [left, top, right - left, bottom - top]
            }""",
            margin,
        )

    def open_help(self):
        """Selects the first node and opens its help in the side panel."""
        from playwright.sync_api import TimeoutError

        info = self.page.get_by_test_id("info-button")
        for _ in range(10):  # what the editor still does as it opens can take the selection away again
            self.page.evaluate("app.canvas.selectNode(app.graph.nodes[0])")
            try:
                info.wait_for(state="attached", timeout=3000)
                break
            except TimeoutError:
                continue
        info.dispatch_event("click")

    def settle(self):
        """Waits until what was changed is on the screen."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 150))))")

    def prompt(self):
        """The API form that the editor makes of its graph."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")


@contextlib.contextmanager
def open_editor(url, chromium, width=1600, height=1000):
    """Yields the Editor of the server at `url`, in the browser `chromium`."""
    from playwright.sync_api import sync_playwright  # in the environment of the tests alone

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield Editor(browser, Client(url), width, height)
        finally:
            browser.close()
