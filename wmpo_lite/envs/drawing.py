"""MuJoCo with a way to draw: the back end is chosen and tried once per process."""

import ctypes.util
import functools
import importlib
import os
import sys

from wmpo_lite.common.errors import UserError

HEADLESS = ("egl", "osmesa")


def import_mujoco():
    """MuJoCo, able to draw without a screen: through EGL where its library loads and OSMesa
    otherwise, or as MUJOCO_GL says. UserError where it cannot draw.
    """
    if not os.environ.get("MUJOCO_GL") and sys.platform.startswith("linux"):
        os.environ["MUJOCO_GL"] = "egl" if ctypes.util.find_library("EGL") else "osmesa"
    return _tried(os.environ.get("MUJOCO_GL", ""))


@functools.cache
def _tried(backend: str):
    """MuJoCo, after a picture of nothing has been drawn. Threads may draw, so what fails here fails
    before anything is begun.
    """
    try:
        import mujoco
        from mujoco.rendering.classic import gl_context

        chosen = getattr(getattr(gl_context, "GLContext", None), "__module__", "")
        if backend.lower().strip() in HEADLESS and not chosen.endswith(backend.lower().strip()):
            # somebody imported MuJoCo first, and it chose a back end that needs a screen
            importlib.reload(gl_context)
        renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
        renderer.update_scene(mujoco.MjData(renderer.model))
        renderer.render()
        renderer.close()
    # ImportError, AttributeError, RuntimeError, GLError, FatalError: each back end has its own
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"MuJoCo cannot render here ({said}); unset MUJOCO_GL (it is '{backend}') or set it to"
            " egl or osmesa, and install the GL libraries: apt-get install libegl1 libegl-mesa0"
            " libgl1-mesa-dri libosmesa6"
        ) from error
    return mujoco
