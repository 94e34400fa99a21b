// A label map, and what paints on it: whole pixels without half tones, since values are classes.
// Coordinates are in pixels from the upper left corner of the image; the centre of pixel (x, y) is (x + 0.5, y + 0.5).

export const NONE = 255;

const THINNEST = 0.75; // pixels of radius at which a line still has no gaps

export class LabelMap {
  constructor(width, height, data) {
    this.width = width;
    this.height = height;
    this.data = data ?? new Uint8Array(width * height).fill(NONE);
  }

  // Begin a stroke: from here on, changes are remembered.
  begin() {
    this.before = this.data.slice();
    this.touched = null;
  }

  // End a stroke; gives the runs that lead from the state at its beginning to now, and back.
  end() {
    const found = { forward: [], backward: [] };
    const box = this.touched;
    if (box) {
      for (let y = box.top; y < box.bottom; y++) {
        const row = y * this.width;
        appendRuns(found.forward, this.before, this.data, row + box.left, row + box.right);
        appendRuns(found.backward, this.data, this.before, row + box.left, row + box.right);
      }
    }
    this.before = null;
    return found;
  }

  // Give up a stroke; gives the box of what is as before again.
  cancel() {
    this.data.set(this.before);
    this.before = null;
    return this.touched;
  }

  // Set runs of start, length and value; gives the box of what they cover.
  apply(runs) {
    let box = null;
    for (let i = 0; i < runs.length; i += 3) {
      const [start, length, value] = [runs[i], runs[i + 1], runs[i + 2]];
      this.data.fill(value, start, start + length);
      const top = Math.floor(start / this.width);
      const bottom = Math.floor((start + length - 1) / this.width) + 1;
      const whole = bottom - top > 1;
      const left = whole ? 0 : start - top * this.width;
      box = joined(box, { left, top, right: whole ? this.width : left + length, bottom });
    }
    return box;
  }

  // A line with round ends: all pixels whose centre is within `radius` of it. Gives the box of what it covers.
  line(from, to, radius, value) {
    const r = Math.max(radius, THINNEST);
    const top = Math.max(0, Math.floor(Math.min(from.y, to.y) - r));
    const bottom = Math.min(this.height, Math.ceil(Math.max(from.y, to.y) + r));
    let box = null;
    for (let y = top; y < bottom; y++) {
      const span = spanOfLine(from, to, r, y + 0.5);
      if (span) box = joined(box, this.#row(y, span[0], span[1], value));
    }
    this.touched = joined(this.touched ?? null, box);
    return box;
  }

  // The inside of a polygon, by the even-odd rule, and its outline of the thinnest line.
  polygon(points, value) {
    let box = null;
    const rows = points.map((point) => point.y);
    const top = Math.max(0, Math.floor(Math.min(...rows)));
    const bottom = Math.min(this.height, Math.ceil(Math.max(...rows)));
    for (let y = top; y < bottom; y++) {
      const crossings = [];
      const middle = y + 0.5;
      points.forEach((a, i) => {
        const b = points[(i + 1) % points.length];
        if (a.y <= middle !== b.y <= middle) crossings.push(a.x + ((middle - a.y) / (b.y - a.y)) * (b.x - a.x));
      });
      crossings.sort((one, other) => one - other);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        box = joined(box, this.#row(y, crossings[i], crossings[i + 1], value));
      }
    }
    this.touched = joined(this.touched ?? null, box);
    points.forEach((a, i) => {
      box = joined(box, this.line(a, points[(i + 1) % points.length], THINNEST, value));
    });
    return box;
  }

  // Pixels of a row whose centres lie between two places.
  #row(y, from, to, value) {
    const left = Math.max(0, Math.ceil(from - 0.5));
    const right = Math.min(this.width, Math.floor(to - 0.5) + 1);
    if (right <= left) return null;
    this.data.fill(value, y * this.width + left, y * this.width + right);
    return { left, top: y, right, bottom: y + 1 };
  }
}

// The part of a row that lies within `r` of a line: discs of that radius, moved along it, cover it between two places.
function spanOfLine(from, to, r, y) {
  const dx = to.x - from.x;
  const dy = to.y - from.y;
  const length = Math.hypot(dx, dy);
  // Centres of discs that reach the row are those with |y - from.y - t dy| <= r.
  let [first, last] = [0, 1];
  if (dy === 0) {
    if (Math.abs(y - from.y) > r) return null;
  } else {
    const ends = [(y - from.y - r) / dy, (y - from.y + r) / dy].sort((one, other) => one - other);
    first = Math.max(0, ends[0]);
    last = Math.min(1, ends[1]);
    if (first > last) return null;
  }
  // Of x(t) = from.x + t dx +- sqrt(r^2 - u^2), with u = y - from.y - t dy, the extremes are at the ends, or where its
  // derivative vanishes: |u| = r |dx| / length.
  const places = [first, last];
  if (dy !== 0 && length > 0) {
    for (const u of [(r * dx) / length, (-r * dx) / length]) {
      const t = (y - from.y - u) / dy;
      if (t > first && t < last) places.push(t);
    }
  }
  let [left, right] = [Infinity, -Infinity];
  for (const t of places) {
    const u = y - from.y - t * dy;
    const half = Math.sqrt(Math.max(0, r * r - u * u));
    left = Math.min(left, from.x + t * dx - half);
    right = Math.max(right, from.x + t * dx + half);
  }
  return [left, right];
}

function appendRuns(runs, before, after, start, end) {
  let i = start;
  while (i < end) {
    if (before[i] === after[i]) {
      i++;
      continue;
    }
    const value = after[i];
    const first = i;
    while (i < end && after[i] === value && before[i] !== value) i++;
    runs.push(first, i - first, value);
  }
}

export function joined(one, other) {
  if (!one || !other) return one ?? other;
  return {
    left: Math.min(one.left, other.left),
    top: Math.min(one.top, other.top),
    right: Math.max(one.right, other.right),
    bottom: Math.max(one.bottom, other.bottom),
  };
}
