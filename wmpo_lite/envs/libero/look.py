"""How a frame of LIBERO is drawn: fast options for machines that render on their processor, with
what each changes in the picture.
"""

from dataclasses import dataclass

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.envs.renderer import Renderer


@dataclass(frozen=True)
class Look:
    """The defaults are the fast ones; `Look.official()` draws what LIBERO draws.

    samples: of antialiasing per pixel; 0 leaves edges jagged (LIBERO: 4). reflections: mirror
    images on shiny material; without them the top of the flat stove is gray instead of white, and
    floors lose a faint shine. shadows: cast shadows; most of LIBERO's lamps cast none, the switch
    costs nothing then. grain: meters; corners of a mesh that share a cube of this size are drawn as
    one, which coarsens small parts below a third of a pixel's width of the agent view (the near
    wrist view shows it). None takes 0.25 m / size, 0 draws every triangle. Physics never sees any
    of it.
    """

    samples: int = 0
    reflections: bool = False
    shadows: bool = False
    grain: float | None = None

    def __post_init__(self):
        if self.samples < 0 or self.grain is not None and not 0 <= self.grain < 0.05:
            raise UserError(
                f"Look.samples is {self.samples} and grain {self.grain}; expected 0 or more samples"
                " and a grain of 0 to 0.05 m"
            )

    @staticmethod
    def official() -> "Look":
        return Look(samples=4, reflections=True, shadows=True, grain=0.0)


class Painter:
    """Draws cameras of a MuJoCo model as upright uint8 (size, size, 3)."""

    def __init__(self, model, size: int, look: Look):
        import mujoco

        model.vis.quality.offsamples = look.samples
        model.vis.global_.offwidth = max(size, model.vis.global_.offwidth)
        model.vis.global_.offheight = max(size, model.vis.global_.offheight)
        grain = 0.25 / size if look.grain is None else look.grain
        names = ("mesh_face", "mesh_facenormal", "mesh_facetexcoord", "mesh_facenum")
        kept = {name: getattr(model, name).copy() for name in names}
        if grain:
            coarsen(model, grain)
        try:
            # the meshes go to the graphics memory here, and only here
            self.renderer = Renderer(model, size)
        finally:
            for name, value in kept.items():
                getattr(model, name)[:] = value
        self.option = mujoco.MjvOption()
        # collision shapes hidden, visual ones shown
        self.option.geomgroup[0], self.option.geomgroup[1] = 0, 1
        self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = look.shadows
        self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = look.reflections

    def draw(self, data, camera: str) -> np.ndarray:
        return self.renderer.draw(data, camera, self.option)

    def close(self):
        self.renderer.close()


def coarsen(model, grain: float):
    """Join the corners of each mesh that lie in one cube of `grain` meters and drop the triangles
    that vanish thereby (in place).
    """
    for mesh in range(model.nmesh):
        corner, corners, first, count = (
            int(a[mesh])
            for a in (
                model.mesh_vertadr,
                model.mesh_vertnum,
                model.mesh_faceadr,
                model.mesh_facenum,
            )
        )
        cells = np.floor(model.mesh_vert[corner : corner + corners] / grain).astype(np.int64)
        cells -= cells.min(axis=0)
        spans = cells.max(axis=0) + 1
        flat = (cells[:, 0] * spans[1] + cells[:, 1]) * spans[2] + cells[:, 2]
        _, example, member = np.unique(flat, return_index=True, return_inverse=True)
        faces = example[member][model.mesh_face[first : first + count]]
        rows = np.flatnonzero(
            (faces[:, 0] != faces[:, 1])
            & (faces[:, 1] != faces[:, 2])
            & (faces[:, 0] != faces[:, 2])
        )
        if len(rows) < 12:
            continue  # smaller than the grain: leave it alone
        # Doubles go, but not a face and its back: thin walls have one on each side.
        turn = faces[rows].argmin(axis=1)[:, None]
        turned = np.take_along_axis(faces[rows], (turn + np.arange(3)) % 3, axis=1).astype(np.int64)
        code = (turned[:, 0] * corners + turned[:, 1]) * corners + turned[:, 2]
        rows = rows[np.sort(np.unique(code, return_index=True)[1])]
        left = slice(first, first + len(rows))
        model.mesh_face[left] = faces[rows]
        for name in ("mesh_facenormal", "mesh_facetexcoord"):
            array = getattr(model, name)
            array[left] = array[first : first + count][rows]
        model.mesh_facenum[mesh] = len(rows)
