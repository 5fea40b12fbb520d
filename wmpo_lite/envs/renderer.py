"""Every OpenGL context of the process, in one place: pictures do not depend on who else draws, or
is closed.

MuJoCo frees a renderer's textures and buffers by number in whichever context is current, so that
closing one renderer takes them from another; and a context that is current in one thread cannot be
used in a second one. Here a context is current only while it draws or is freed, under one lock, and
never in between.
"""

import atexit
import collections
import contextlib
import threading
import weakref

import numpy as np

_lock = threading.Lock()
# MuJoCo's renderers; held here, so that none of them is freed by the garbage collector
_living: set = set()
_given_up: collections.deque = collections.deque()  # those whose owner has closed or dropped them
_ready = False


class Renderer:
    """Draws cameras of a MuJoCo model as uint8 (size, size, 3), in any thread; closed when dropped,
    or at exit.
    """

    def __init__(self, model, size: int):
        import mujoco

        with _drawing():
            self._mujoco = mujoco.Renderer(model, size, size)
            _living.add(self._mujoco)
        self.close = weakref.finalize(self, _give_up, self._mujoco)  # safe to call twice
        self.close.atexit = False

    @property
    def scene(self):
        """MuJoCo's `MjvScene`, for its flags."""
        return self._mujoco.scene

    def draw(self, data, camera: str, option=None) -> np.ndarray:
        """The view of `camera`. option: MuJoCo's `MjvOption`, or None for its default."""
        with _drawing():
            self._mujoco.update_scene(data, camera=camera, scene_option=option)
            return self._mujoco.render()

    def draw_geoms(self, data, camera: str) -> np.ndarray:
        """The number of the geom that each pixel shows, -1 for none: int32 (size, size)."""
        with _drawing():
            self._mujoco.enable_segmentation_rendering()
            try:
                self._mujoco.update_scene(data, camera=camera)
                return self._mujoco.render()[..., 0]
            finally:
                self._mujoco.disable_segmentation_rendering()


@contextlib.contextmanager
def _drawing():
    """Within this, contexts belong to the calling thread alone; behind it, none is current."""
    global _ready
    with _lock:
        try:
            yield
        finally:
            _free_given_up()
            _release()
        # behind the first context, so that it runs before MuJoCo takes down the display
        if not _ready:
            _ready = atexit.register(_close_all)


def _give_up(renderer):
    """Free `renderer` now, or where someone is drawing, when that is over.

    The garbage collector may call this in the middle of a drawing, in the same thread: it must
    neither wait nor touch what is current.
    """
    _given_up.append(renderer)
    if _lock.acquire(blocking=False):
        try:
            _free_given_up()
            _release()
        finally:
            _lock.release()


def _free_given_up():
    while _given_up:
        renderer = _given_up.popleft()
        if renderer in _living:
            _living.discard(renderer)
            renderer._gl_context.make_current()  # else another one's textures go
            renderer.close()


def _close_all():
    with _lock:
        _given_up.extend(_living)
        _free_given_up()


def _release():
    """Make no context current in this thread."""
    # where renderers take theirs from; `drawing` may have changed it
    from mujoco.rendering.classic import gl_context

    kind = getattr(getattr(gl_context, "GLContext", None), "__module__", "").rpartition(".")[2]
    if kind == "egl":
        from mujoco import egl

        # a new thread's, or one's that freed a context, is another
        egl.EGL.eglBindAPI(egl.EGL.EGL_OPENGL_API)
        if egl.EGL.eglGetCurrentContext():
            none = egl.EGL.EGL_NO_SURFACE
            egl.EGL.eglMakeCurrent(egl.EGL_DISPLAY, none, none, egl.EGL.EGL_NO_CONTEXT)
    elif kind == "osmesa":
        from mujoco import osmesa

        osmesa.osmesa.OSMesaMakeCurrent(None, None, osmesa.GL.GL_FLOAT, 0, 0)
    elif kind == "glfw":
        from mujoco import glfw

        glfw.glfw.make_context_current(None)
    elif kind == "cgl":
        from mujoco import cgl

        cgl.cgl.CGLSetCurrentContext(None)
