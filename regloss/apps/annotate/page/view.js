// What is seen: the image, the answer and the strokes on a stage that is zoomed and moved, and a cursor above them.

import { NONE } from "./labels.js";

const LARGEST = 64; // screen pixels an image pixel
const MARGIN = 24;

export class View {
  constructor(viewport) {
    this.viewport = viewport;
    this.stage = viewport.querySelector("#stage");
    this.picture = viewport.querySelector("#picture");
    this.answerCanvas = viewport.querySelector("#answer");
    this.strokeCanvas = viewport.querySelector("#strokes");
    this.cursorCanvas = viewport.querySelector("#cursor");
    this.scale = 1;
    this.left = 0;
    this.top = 0;
    this.fitted = true;
    this.size = { width: 1, height: 1 };
    new ResizeObserver(() => {
      if (this.fitted) this.fit();
      this.drawCursor();
    }).observe(viewport);
  }

  // ---- the image

  open(width, height) {
    this.size = { width, height };
    this.stage.style.width = `${width}px`;
    this.stage.style.height = `${height}px`;
    for (const canvas of [this.answerCanvas, this.strokeCanvas]) {
      canvas.width = width;
      canvas.height = height;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    this.picture.style.width = `${width}px`;
    this.picture.style.height = `${height}px`;
    this.fit();
  }

  show(brightness, contrast) {
    const changed = brightness !== 100 || contrast !== 100;
    this.picture.style.filter = changed ? `brightness(${brightness}%) contrast(${contrast}%)` : "";
  }

  // ---- zoom and place

  fit() {
    const { clientWidth, clientHeight } = this.viewport;
    const { width, height } = this.size;
    const room = Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height);
    this.scale = Math.min(Math.max(room, 0.01), LARGEST);
    this.left = (clientWidth - width * this.scale) / 2;
    this.top = (clientHeight - height * this.scale) / 2;
    this.#place();
    this.fitted = true;
  }

  // Zoom by a factor about a place of the window.
  zoom(factor, x, y) {
    const smallest = Math.min(1, 64 / Math.max(this.size.width, this.size.height));
    const scale = Math.min(Math.max(this.scale * factor, smallest), LARGEST);
    const rect = this.viewport.getBoundingClientRect();
    const [px, py] = [(x ?? rect.left + rect.width / 2) - rect.left, (y ?? rect.top + rect.height / 2) - rect.top];
    this.left = px - ((px - this.left) / this.scale) * scale;
    this.top = py - ((py - this.top) / this.scale) * scale;
    this.scale = scale;
    this.#place();
  }

  move(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.#place();
  }

  // The place in the image below a place of the window.
  toImage(x, y) {
    const rect = this.viewport.getBoundingClientRect();
    return { x: (x - rect.left - this.left) / this.scale, y: (y - rect.top - this.top) / this.scale };
  }

  // Move so that a place in the image is seen.
  reveal(point) {
    const { clientWidth, clientHeight } = this.viewport;
    const [x, y] = [this.left + point.x * this.scale, this.top + point.y * this.scale];
    this.move(
      Math.max(0, MARGIN - x) - Math.max(0, x - clientWidth + MARGIN),
      Math.max(0, MARGIN - y) - Math.max(0, y - clientHeight + MARGIN),
    );
  }

  #place() {
    // Something of the image stays in sight.
    const { clientWidth, clientHeight } = this.viewport;
    const keep = 40;
    this.left = Math.min(Math.max(this.left, keep - this.size.width * this.scale), clientWidth - keep);
    this.top = Math.min(Math.max(this.top, keep - this.size.height * this.scale), clientHeight - keep);
    this.fitted = false;
    this.stage.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.scale})`;
    this.stage.classList.toggle("pixels", this.scale >= 3);
    this.drawCursor();
  }

  // ---- strokes and answer

  // Paint a box of a label map, with a light rim around strokes, so that dark ones are seen on dark images.
  drawStrokes(labels, colors, box) {
    const { width, height, data } = labels;
    const left = Math.max(0, box.left - 1);
    const top = Math.max(0, box.top - 1);
    const right = Math.min(width, box.right + 1);
    const bottom = Math.min(height, box.bottom + 1);
    if (right <= left || bottom <= top) return;
    const pixels = new ImageData(right - left, bottom - top);
    const words = new Uint32Array(pixels.data.buffer);
    const palette = new Uint32Array(256);
    colors.forEach((color, index) => (palette[index] = packed(color, 255)));
    const rim = packed([255, 255, 255], 190);
    let at = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++, at++) {
        const i = y * width + x;
        if (data[i] !== NONE) {
          words[at] = palette[data[i]];
        } else if (
          (x > 0 && data[i - 1] !== NONE) ||
          (x + 1 < width && data[i + 1] !== NONE) ||
          (y > 0 && data[i - width] !== NONE) ||
          (y + 1 < height && data[i + width] !== NONE)
        ) {
          words[at] = rim;
        }
      }
    }
    this.strokeCanvas.getContext("2d").putImageData(pixels, left, top);
  }

  clearAnswer() {
    this.answerCanvas.getContext("2d").clearRect(0, 0, this.answerCanvas.width, this.answerCanvas.height);
  }

  // Paint an answer: areas lightly, boundaries fully and a little brighter. A black background stays as it is, but for a
  // dark line along its boundaries: beside the bright one it is seen on every image.
  drawAnswer(answer, colors) {
    const { width, height, data, factor } = answer;
    const canvas = this.answerCanvas;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    canvas.style.width = `${width * factor}px`;
    canvas.style.height = `${height * factor}px`;
    const area = new Uint32Array(256);
    const edge = new Uint32Array(256);
    colors.forEach((color, index) => {
      const shown = color.some((part) => part > 0) || index > 0;
      area[index] = shown ? packed(color, 100) : 0;
      edge[index] = shown ? packed(color.map((part) => Math.round(part + 0.4 * (255 - part))), 255) : packed(color, 150);
    });
    const pixels = new ImageData(width, height);
    const words = new Uint32Array(pixels.data.buffer);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const label = data[i];
        const border =
          (x > 0 && data[i - 1] !== label) ||
          (x + 1 < width && data[i + 1] !== label) ||
          (y > 0 && data[i - width] !== label) ||
          (y + 1 < height && data[i + width] !== label);
        words[i] = border ? edge[label] : area[label];
      }
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  // ---- the cursor

  // `cursor`: null, or what is drawn above: `ring` {point, radius, color}, `cross` {point, down}, `path` {points, to,
  // color, radius}.
  setCursor(cursor) {
    this.cursor = cursor;
    this.drawCursor();
  }

  drawCursor() {
    if (this.scheduled) return;
    this.scheduled = requestAnimationFrame(() => {
      this.scheduled = null;
      this.#paintCursor();
    });
  }

  #paintCursor() {
    const canvas = this.cursorCanvas;
    const ratio = devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.viewport;
    if (canvas.width !== Math.round(clientWidth * ratio) || canvas.height !== Math.round(clientHeight * ratio)) {
      canvas.width = Math.round(clientWidth * ratio);
      canvas.height = Math.round(clientHeight * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, clientWidth, clientHeight);
    const cursor = this.cursor;
    if (!cursor) return;
    const place = (point) => [this.left + point.x * this.scale, this.top + point.y * this.scale];
    // Twice, dark below light, so that it is seen on every image.
    const stroke = (color, width) => {
      context.lineWidth = width + 2;
      context.strokeStyle = "#000b";
      context.stroke();
      context.lineWidth = width;
      context.strokeStyle = color;
      context.stroke();
    };
    if (cursor.path) {
      const { points, to, color, radius } = cursor.path;
      context.lineJoin = context.lineCap = "round";
      context.beginPath();
      points.forEach((point, i) => context[i ? "lineTo" : "moveTo"](...place(point)));
      if (to) context.lineTo(...place(to));
      if (radius) {
        context.globalAlpha = 0.6;
        context.lineWidth = Math.max(2, 2 * radius * this.scale);
        context.strokeStyle = color;
        context.stroke();
        context.globalAlpha = 1;
      }
      stroke("#fff", 1.5);
      for (const point of points) {
        context.beginPath();
        context.arc(...place(point), 4, 0, 7);
        context.fillStyle = color;
        context.fill();
        stroke("#fff", 1.5);
      }
    }
    if (cursor.ring) {
      const { point, radius, color } = cursor.ring;
      context.beginPath();
      context.arc(...place(point), Math.max(3, radius * this.scale), 0, 7);
      stroke(color, 1.5);
    }
    if (cursor.cross) {
      const [x, y] = place(cursor.cross.point);
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + 5 * dx, y + 5 * dy);
        context.lineTo(x + 16 * dx, y + 16 * dy);
      }
      stroke(cursor.cross.down ? "#ffb454" : "#fff", 2);
    }
  }
}

// A colour as the bytes of a pixel; all machines that browsers run on put the lowest byte first.
function packed([red, green, blue], alpha) {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
