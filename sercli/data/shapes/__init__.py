"""The embedded world: rendered when read, or written as files in the layouts of real sets."""
