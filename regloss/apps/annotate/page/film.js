// The strip of all images: which are drawn on, which one is open, and in which order one goes through them.

export class Film {
  // `open(index)`: called with the image that is chosen.
  constructor(strip, images, open) {
    this.strip = strip;
    this.images = images;
    this.open = open;
    this.unsure = new Map(); // uncertainty by index
    this.order = images.map((_, index) => index);
    this.current = 0;
    this.frames = images.map((image, index) => this.#frame(image, index));
    strip.append(...this.frames);
    strip.addEventListener("keydown", (event) => this.#key(event));
  }

  get place() {
    return this.order.indexOf(this.current);
  }

  // The image so many places further on; null beyond the ends.
  neighbour(step) {
    return this.order[this.place + step] ?? null;
  }

  select(index) {
    this.frames[this.current].setAttribute("aria-selected", "false");
    this.frames[this.current].tabIndex = -1;
    this.current = index;
    const frame = this.frames[index];
    frame.setAttribute("aria-selected", "true");
    frame.tabIndex = 0;
    frame.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  setDrawn(index, drawn) {
    this.images[index].drawn = drawn;
    this.#name(index);
  }

  get drawn() {
    return this.images.filter((image) => image.drawn).length;
  }

  // Uncertainties by index, as far as they are known.
  setUnsure(found) {
    for (const [index, value] of found) {
      if (this.unsure.get(index) === value) continue;
      this.unsure.set(index, value);
      const bar = this.frames[index].querySelector(".unsure");
      bar.style.width = `${Math.min(100, 100 * value)}%`;
      this.#name(index);
    }
  }

  // Of the images without strokes the one that the network is least sure of; null if none is known.
  get leastSure() {
    const open = [...this.unsure].filter(([index]) => !this.images[index].drawn && index !== this.current);
    open.sort((one, other) => other[1] - one[1]);
    return open.length ? open[0][0] : null;
  }

  arrange(byUncertainty) {
    this.order = this.images.map((_, index) => index);
    if (byUncertainty) {
      const value = (index) => this.unsure.get(index) ?? -1;
      this.order.sort((one, other) => value(other) - value(one) || one - other);
    }
    this.strip.append(...this.order.map((index) => this.frames[index]));
    this.frames[this.current].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #frame(image, index) {
    const frame = document.createElement("button");
    frame.type = "button";
    frame.className = "frame";
    frame.setAttribute("role", "option");
    frame.setAttribute("aria-selected", "false");
    frame.tabIndex = -1;
    frame.title = image.name;
    const picture = document.createElement("img");
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.alt = "";
    picture.src = `api/images/${index}/thumbnail`;
    const bar = document.createElement("span");
    bar.className = "unsure";
    frame.append(picture, bar);
    frame.addEventListener("click", () => this.open(index));
    this.frames ??= [];
    this.frames[index] = frame;
    this.#name(index);
    return frame;
  }

  #name(index) {
    const { name, drawn } = this.images[index];
    const unsure = this.unsure.has(index) ? `, uncertainty ${Math.round(100 * this.unsure.get(index))} %` : "";
    this.frames[index].setAttribute("aria-label", `${name}${drawn ? ", has scribbles" : ""}${unsure}`);
    this.frames[index].classList.toggle("drawn", drawn);
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    const place = this.order.findIndex((index) => this.frames[index] === document.activeElement);
    const frame = this.frames[this.order[place + steps[event.key]]];
    if (!frame) return;
    for (const each of this.frames) each.tabIndex = -1;
    frame.tabIndex = 0;
    frame.focus();
  }
}
