"""The pack in ComfyUI: thin nodes over the other rooms, and the only room that imports the host."""
