"""`python -m vpp_plugins.cli`, for launchers that take a module: `accelerate launch -m vpp_plugins.cli eval ...`."""

from vpp_plugins.cli import main

main()
