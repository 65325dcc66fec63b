"""Set-up of the host, the demo, the tests' server and the small models. Imported as `tools.*`: ComfyUI has a `server` of its own."""
