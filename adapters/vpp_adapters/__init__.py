"""The adapters that come with vpp-plugins; each arrives through its entry point, like a stranger's."""
