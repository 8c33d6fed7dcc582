"""The scene benchmark and the committed photographs: images made or loaded with objects and expressions."""

from vpp_plugins.data.scenes.assets import Assets, fetch_assets, find_assets
from vpp_plugins.data.scenes.drawn import SHAPES, DrawnScenes, draw_scenes
from vpp_plugins.data.scenes.folder import (
    FOLDER,
    SceneFolder,
    boxes_of,
    load_real_photos,
    load_scenes,
    write_scenes,
)
from vpp_plugins.data.scenes.generator import SCENES_VERSION, Scene, SceneGenerator
from vpp_plugins.data.scenes.shapes import Shapes
from vpp_plugins.data.scenes.source import SceneSource

__all__ = [
    "FOLDER",
    "SCENES_VERSION",
    "SHAPES",
    "Assets",
    "DrawnScenes",
    "Scene",
    "SceneFolder",
    "SceneGenerator",
    "SceneSource",
    "Shapes",
    "boxes_of",
    "draw_scenes",
    "fetch_assets",
    "find_assets",
    "load_real_photos",
    "load_scenes",
    "write_scenes",
]
