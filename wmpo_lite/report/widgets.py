"""Notebook widgets on plain functions. `Driver` and the figures work without a front end; where
there is none, or WMPO_STATIC is set, a notebook shows a static picture instead of a widget.
"""

import asyncio
import io
import json
import os
from collections.abc import Callable

import numpy as np

from wmpo_lite.common.errors import UserError
from wmpo_lite.report.show import data_uri

# Command of each button: (dx, dy, dz) as the camera sees it, which looks at the arm from the front:
# +x comes nearer, +y goes to the right.
MOVES = {
    "left": (0, -1, 0),
    "right": (0, 1, 0),
    "away": (-1, 0, 0),
    "near": (1, 0, 0),
    "up": (0, 0, 1),
    "down": (0, 0, -1),
    "wait": (0, 0, 0),
}
BUTTONS = (*MOVES, "grip", "restart")
KEYS = {
    "ArrowLeft": "left",
    "ArrowRight": "right",
    "ArrowUp": "away",
    "ArrowDown": "near",
    "w": "up",
    "s": "down",
    " ": "grip",
    "x": "wait",
    "r": "restart",
}


def live() -> bool:
    """Whether a front end may run: false where WMPO_STATIC is set, as when notebooks are executed
    to be stored or tested.
    """
    return not os.environ.get("WMPO_STATIC")


class Driver:
    """One episode under hand control in any environment of the kit; a simulator and imagination
    feel alike.

    states: one initial state. hold: control steps that one press lasts. horizon: control steps
    after which presses no longer count.
    """

    def __init__(self, env, states, hold: int = 2, horizon: int = 40):
        if len(states) != 1:
            raise UserError(
                f"a driver holds one episode and got {len(states)} initial states; pick one, such"
                " as states[[0]]"
            )
        if hold < 1 or horizon < hold:
            raise UserError(
                f"hold is {hold} and horizon {horizon}; expected 1 <= hold <= horizon control steps"
            )
        self.env, self.states, self.hold, self.horizon = env, states, hold, horizon
        self.restart()

    def restart(self):
        self.frames = [self.env.reset(self.states)[0]]
        self.actions = []
        self.done = []
        self.closed = False

    @property
    def frame(self) -> np.ndarray:
        """The newest picture, uint8 (H, W, 3)."""
        return self.frames[-1]

    @property
    def success(self) -> bool:
        return bool(self.done and self.done[-1])

    @property
    def over(self) -> bool:
        return self.success or len(self.actions) + self.hold > self.horizon

    def press(self, name: str) -> np.ndarray:
        """Do what the button `name` says ('left', ..., 'grip', 'restart'); returns the newest
        picture. A press after the end changes nothing.
        """
        if name not in BUTTONS:
            raise UserError(f"there is no button '{name}'; use one of {', '.join(BUTTONS)}")
        if name == "restart":
            self.restart()
        elif not self.over:
            self.closed ^= name == "grip"
            action = np.array(
                [*MOVES.get(name, (0, 0, 0)), 1.0 if self.closed else -1.0], dtype=np.float32
            )
            frames, done, _ = self.env.step_chunk(np.tile(action, (1, self.hold, 1)))
            self.frames += list(frames[0])
            self.actions += [action] * self.hold
            self.done += [bool(d) for d in done[0]]
        return self.frame

    def caption(self) -> str:
        """What stands under the picture."""
        end = f"gripper {'closed' if self.closed else 'open'}"
        if self.over:
            end = "success!" if self.success else "time is up"
        return f"{self.states.instructions[0]} - step {len(self.actions)} of {self.horizon}, {end}"

    def trajectory(self):
        """The episode so far as a Trajectory, to be saved or cloned from. UserError before the
        first press.
        """
        from wmpo_lite.trajectory import Trajectory

        if not self.actions:
            raise UserError(
                "nothing was driven yet, so there is no trajectory; press a button first"
            )
        steps = self.done.index(True) + 1 if self.success else len(self.actions)
        return Trajectory(
            frames=np.stack(self.frames),
            actions=np.stack(self.actions),
            success=self.success,
            finish_step=steps,
            instruction=self.states.instructions[0],
            initial_state=self.states.states[0],
            split=self.states.split,
            index=int(self.states.indices[0]),
            chunk=self.hold,
        )


def png(frame: np.ndarray) -> str:
    """A picture uint8 (H, W, 3), every pixel enlarged, as a base64 data address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame.repeat(5, axis=0).repeat(5, axis=1)).save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "image/png")


PAD_JS = """
const BUTTONS = [["left", "\\u2190"], ["right", "\\u2192"], ["away", "\\u2191"],
  ["near", "\\u2193"],
  ["up", "up (w)"], ["down", "down (s)"],
                 ["grip", "grip (space)"], ["wait", "wait (x)"], ["restart", "restart (r)"]];
function render({ model, el }) {
  const keys = KEYS;
  const box = document.createElement("div");
  box.className = "wmpo-pad"; box.tabIndex = 0;
  box.dataset.lmSuppressShortcuts = "true";  // JupyterLab would take the keys for its own commands
  const image = document.createElement("img");
  image.alt = "what the camera sees"; image.draggable = false;
  const caption = document.createElement("div"); caption.className = "wmpo-caption";
  const row = document.createElement("div"); row.className = "wmpo-buttons";
  const press = (name) => { model.send({ press: name }); };
  for (const [name, text] of BUTTONS) {
    const button = document.createElement("button");
    button.textContent = text; button.title = name; button.dataset.press = name;
    button.addEventListener("click", () => { press(name); box.focus(); });
    row.appendChild(button);
  }
  const draw = () => { image.src = model.get("picture");
  caption.textContent = model.get("caption"); };
  model.on("change:picture", draw); model.on("change:caption", draw); draw();
  box.addEventListener("keydown", (event) => {
    const name = keys[event.key];
    if (name) { event.preventDefault(); event.stopPropagation(); press(name); }
  });
  box.append(image, caption, row); el.appendChild(box);
}
export default { render };
"""
PAD_CSS = """
.wmpo-pad { display: inline-block; padding: 8px; border: 2px solid #bec2c9; border-radius: 6px;
  outline: none; }
.wmpo-pad:focus { border-color: #1f6fb4; }
.wmpo-pad img { display: block; image-rendering: pixelated; width: 320px; }
.wmpo-caption { font: 13px sans-serif; margin: 6px 0; }
.wmpo-buttons { display: grid; grid-template-columns: repeat(4, auto); gap: 4px; }
.wmpo-buttons button { padding: 4px 8px; }
"""


def pad(driver: Driver):
    """Buttons and keys for a driver: click into the picture, then arrows move over the table, w and
    s up and down, space grips, r starts anew.
    """
    import anywidget
    import traitlets

    class Pad(anywidget.AnyWidget):
        _esm, _css = PAD_JS.replace("KEYS", json.dumps(KEYS)), PAD_CSS
        picture, caption = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)

    widget = Pad(picture=png(driver.frame), caption=driver.caption())

    def press(name: str):
        try:
            driver.press(name)
            widget.picture, widget.caption = png(driver.frame), driver.caption()
        except Exception as error:
            # a front end shows no traceback of a message, so the caption has to say it
            widget.caption = str(error) or type(error).__name__

    # Recent kernels hear messages in threads of their own, and an OpenGL context belongs to the
    # thread that made it.
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # no kernel, as in a test
        loop = None

    def on_message(_, content, buffers):
        name = content.get("press", "")
        press(name) if loop is None else loop.call_soon_threadsafe(press, name)

    widget.on_msg(on_message)
    return widget


def drive(driver: Driver, presses: str = ""):
    """The pad of a driver; without a front end a strip of the episode that `presses` makes (button
    names, one space between them).
    """
    if live():
        return pad(driver)
    from IPython.display import HTML

    from wmpo_lite.report.show import film_strip, image_html

    for name in presses.split():
        driver.press(name)
    strip = film_strip(np.stack(driver.frames), every=max(1, len(driver.frames) // 8), scale=2)
    return HTML(image_html(strip, driver.caption()))


def explore(figure: Callable, **sliders):
    """Sliders over a function that returns a matplotlib Figure; without a front end the figure at
    the sliders' first values.

    sliders: name=(value, low, high, step) for numbers, name=(value, [choices]) for a menu.
    """
    from IPython.display import HTML

    from wmpo_lite.report.show import image_html

    values = {name: spec[0] for name, spec in sliders.items()}
    picture = lambda **chosen: HTML(image_html(figure(**chosen)))
    if not live():
        return picture(**values)
    import ipywidgets

    controls = {}
    for name, spec in sliders.items():
        look = {"description": name, "style": {"description_width": "initial"}}
        if len(spec) == 2:
            controls[name] = ipywidgets.Dropdown(value=spec[0], options=spec[1], **look)
            continue
        look |= dict(zip(("value", "min", "max", "step"), spec)) | {"continuous_update": False}
        if all(isinstance(x, int) for x in spec):
            controls[name] = ipywidgets.IntSlider(**look)
        else:
            controls[name] = ipywidgets.FloatSlider(**look, readout_format=".3f")
    output = ipywidgets.Output()

    def redraw(_=None):
        from IPython.display import display

        with output:
            output.clear_output(wait=True)
            display(picture(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*controls.values(), output])
