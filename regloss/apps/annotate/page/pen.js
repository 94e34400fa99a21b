// Tools, by mouse, pen, fingers or keyboard: what they do to the label map, and to the view.

import { NONE } from "./labels.js";

const ERASER_BUTTON = 32; // of a pen's other end, in `buttons`
const CLOSE = { mouse: 10, pen: 14, touch: 24 }; // screen pixels within which a polygon's first point closes it

export class Pen {
  // `board`: gives `labels`, `locked`, `value`, `color`, `radius`, and takes `painted(box)`, `finished()`,
  // `cancelled(box)`, `say(text)`, `hint(text)`.
  constructor(view, board) {
    this.view = view;
    this.board = board;
    this.tool = "brush";
    this.drawing = null; // {from, value}: a stroke of the brush or the eraser, or the first end of a line
    this.points = []; // of a polygon
    this.pointers = new Map(); // fingers
    this.panning = null;
    this.space = false;
    this.penSeen = false;
    this.reach = CLOSE.mouse;
    this.at = null; // where the pointer is
    this.cross = null; // where the keyboard's cross is
    this.crossDown = false;
    const viewport = view.viewport;
    viewport.addEventListener("pointerdown", (event) => this.#down(event));
    viewport.addEventListener("pointermove", (event) => this.#move(event));
    viewport.addEventListener("pointerup", (event) => this.#up(event));
    viewport.addEventListener("pointercancel", (event) => this.#lost(event));
    viewport.addEventListener("pointerleave", () => {
      this.at = null;
      this.cursor();
    });
    viewport.addEventListener("dblclick", () => this.close());
    viewport.addEventListener("contextmenu", (event) => event.preventDefault());
    viewport.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    viewport.addEventListener("keydown", (event) => this.#key(event));
    viewport.addEventListener("blur", () => {
      this.#lift();
      this.cross = null;
      this.cursor();
    });
  }

  choose(tool) {
    this.cancel();
    this.tool = tool;
    this.view.viewport.classList.toggle("moving", tool === "hand");
    this.cursor();
  }

  // Whether something is begun that Escape gives up.
  get busy() {
    return Boolean(this.drawing || this.points.length);
  }

  cancel() {
    if (this.drawing?.painting) this.board.cancelled(this.board.labels.cancel());
    this.drawing = null;
    this.points = [];
    this.crossDown = false;
    this.board.hint("");
    this.cursor();
  }

  setSpace(held) {
    this.space = held;
    this.view.viewport.classList.toggle("moving", held || this.tool === "hand");
    this.cursor();
  }

  // Close the polygon that is begun.
  close() {
    if (this.points.length < 3) return;
    const labels = this.board.labels;
    labels.begin();
    const box = labels.polygon(this.points, this.#value());
    this.points = [];
    this.board.hint("");
    if (box) this.board.painted(box);
    this.board.finished();
    this.cursor();
  }

  removePoint() {
    this.points.pop();
    if (!this.points.length) this.board.hint("");
    this.cursor();
  }

  // ---- pointers

  #down(event) {
    const { view } = this;
    view.viewport.focus({ preventScroll: true });
    view.viewport.setPointerCapture(event.pointerId);
    event.preventDefault();
    if (event.pointerType === "pen") this.penSeen = true;
    this.reach = CLOSE[event.pointerType] ?? CLOSE.mouse;
    if (event.pointerType === "touch") {
      this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (this.pointers.size > 1) {
        this.cancel(); // what the first of two fingers has begun was no stroke
        return;
      }
    }
    const moves =
      this.space ||
      this.tool === "hand" ||
      (event.pointerType === "mouse" && event.button > 0) ||
      (event.pointerType === "touch" && this.penSeen);
    if (moves || this.board.locked || !this.board.labels) {
      this.panning = { id: event.pointerId, x: event.clientX, y: event.clientY };
      return;
    }
    this.cross = null;
    this.#press(view.toImage(event.clientX, event.clientY), Boolean(event.buttons & ERASER_BUTTON), event.pointerId);
  }

  #move(event) {
    const finger = this.pointers.get(event.pointerId);
    if (finger && this.pointers.size > 1) {
      this.#pinch(finger, event);
      return;
    }
    if (finger) Object.assign(finger, { x: event.clientX, y: event.clientY });
    if (this.panning?.id === event.pointerId) {
      this.view.move(event.clientX - this.panning.x, event.clientY - this.panning.y);
      Object.assign(this.panning, { x: event.clientX, y: event.clientY });
      return;
    }
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) {
      this.#drag(this.view.toImage(each.clientX, each.clientY), event.pointerId);
    }
    this.at = event.pointerType === "touch" ? null : this.view.toImage(event.clientX, event.clientY);
    this.cursor();
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (this.panning?.id === event.pointerId) {
      this.panning = null;
      return;
    }
    this.#release(this.view.toImage(event.clientX, event.clientY), event.pointerId);
  }

  #lost(event) {
    this.pointers.delete(event.pointerId);
    if (this.panning?.id === event.pointerId) this.panning = null;
    if (this.drawing?.pointer === event.pointerId) this.cancel();
  }

  #pinch(finger, event) {
    const [one, other] = [...this.pointers.values()];
    const spread = () => Math.hypot(one.x - other.x, one.y - other.y);
    const middle = () => ({ x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });
    const [before, from] = [spread(), middle()];
    Object.assign(finger, { x: event.clientX, y: event.clientY });
    const to = middle();
    this.view.move(to.x - from.x, to.y - from.y);
    if (before > 0) this.view.zoom(spread() / before, to.x, to.y);
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.view.zoom(Math.exp(-Math.max(-120, Math.min(120, event.deltaY * lines)) * 0.0022), event.clientX, event.clientY);
    this.at = this.view.toImage(event.clientX, event.clientY);
    this.cursor();
  }

  // ---- what tools do

  #value() {
    return this.tool === "eraser" ? NONE : this.board.value;
  }

  #press(point, erases, pointer) {
    const value = erases ? NONE : this.#value();
    if (this.tool === "polygon" && !erases) {
      this.#corner(point);
    } else if (this.tool === "line" && !erases) {
      this.drawing = { from: point, value, pointer, line: true };
      this.board.hint("Lift to end the line");
    } else {
      this.board.labels.begin();
      this.drawing = { from: point, value, pointer, painting: true };
      this.#paint(point, point);
    }
    this.cursor();
  }

  #drag(point, pointer) {
    if (!this.drawing || this.drawing.pointer !== pointer || !this.drawing.painting) return;
    this.#paint(this.drawing.from, point);
    this.drawing.from = point;
  }

  #release(point, pointer) {
    const drawing = this.drawing;
    if (!drawing || drawing.pointer !== pointer) return;
    if (drawing.line) {
      this.board.labels.begin();
      this.#paint(drawing.from, point);
      this.board.hint("");
    } else {
      this.#drag(point, pointer);
    }
    this.drawing = null;
    this.board.finished();
    this.cursor();
  }

  #paint(from, to) {
    const box = this.board.labels.line(from, to, this.board.radius, this.drawing.value);
    if (box) this.board.painted(box);
  }

  #corner(point) {
    const first = this.points[0];
    const near = this.reach / this.view.scale;
    if (this.points.length > 2 && Math.hypot(point.x - first.x, point.y - first.y) < near) {
      this.close();
      return;
    }
    const last = this.points.at(-1);
    if (last && Math.hypot(point.x - last.x, point.y - last.y) < CLOSE.mouse / 4 / this.view.scale) return; // the second of a double click
    this.points.push(point);
    this.board.hint("Double click, or C, closes the polygon; Backspace takes a corner back");
  }

  // ---- the keyboard's cross

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.board.labels) return;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in steps) {
      event.preventDefault();
      this.#step(...steps[event.key].map((part) => part * (event.shiftKey ? 10 : 1)));
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (event.repeat) return;
      if (this.cross === null) this.#step(0, 0);
      else if (this.crossDown) this.#lift();
      else this.#lower();
    }
  }

  #step(dx, dy) {
    const { width, height } = this.view.size;
    const old = this.cross ?? { x: Math.floor(width / 2) + 0.5, y: Math.floor(height / 2) + 0.5 };
    const inside = (value, size) => Math.min(Math.max(value, 0.5), size - 0.5);
    this.cross = { x: inside(old.x + dx, width), y: inside(old.y + dy, height) };
    this.view.reveal(this.cross);
    if (this.crossDown) this.#drag(this.cross, "keyboard");
    this.board.say(`${Math.floor(this.cross.x)}, ${Math.floor(this.cross.y)}`);
    this.cursor();
  }

  #lower() {
    if (this.board.locked || this.tool === "hand") return;
    this.#press(this.cross, false, "keyboard");
    if (this.tool === "polygon") {
      this.board.say(`Corner ${this.points.length}`);
      return;
    }
    this.crossDown = true;
    this.board.say("Pen down");
    this.cursor();
  }

  #lift() {
    if (!this.crossDown) return;
    this.crossDown = false;
    this.#release(this.cross, "keyboard");
    this.board.say("Pen lifted");
  }

  // ---- what is shown of all that

  cursor() {
    const { board } = this;
    const point = this.cross ?? this.at;
    const moves = this.space || this.tool === "hand" || board.locked;
    const color = this.tool === "eraser" ? "#fff" : board.color;
    const cursor = {};
    if (this.points.length) cursor.path = { points: this.points, to: point, color };
    if (this.drawing?.line) {
      cursor.path = { points: [this.drawing.from], to: point, color, radius: board.radius };
    }
    if (point && !moves) {
      const radius = this.tool === "polygon" ? 0 : board.radius;
      cursor.ring = { point, radius, color };
    }
    if (this.cross) cursor.cross = { point: this.cross, down: this.crossDown };
    this.view.setCursor(cursor);
  }
}
