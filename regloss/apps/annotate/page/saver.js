// Strokes on their way to the server: one after the other, again if need be, none lost while the tab is open.

import { Problem, post } from "./api.js";

const LONGEST_PAUSE = 5000; // milliseconds between two tries

export class Saver {
  // `tab`: who draws. `events`: functions `state(text, kind)`, `saved(index, said)`, `conflict(index)`, which gives the
  // revision to go on from, `held(index)`, and `refused(index, problem)`.
  constructor(tab, events) {
    this.tab = tab;
    this.events = events;
    this.queue = [];
    this.revisions = new Map();
    this.number = 0;
    this.sending = false;
    this.paused = new Set(); // images that another tab draws on
    addEventListener("beforeunload", (event) => {
      if (this.queue.length) event.preventDefault();
    });
  }

  push(index, runs) {
    if (!runs.length) return;
    this.queue.push({ index, runs, number: this.number++ });
    this.#work();
  }

  // Strokes of an image that are not saved yet.
  pending(index) {
    return this.queue.filter((stroke) => stroke.index === index).map((stroke) => stroke.runs);
  }

  // Go on with an image that this tab may draw on again.
  resume(index) {
    this.paused.delete(index);
    this.#work();
  }

  // When all strokes of an image are saved.
  async settled(index) {
    while (this.pending(index).length && !this.paused.has(index)) await pause(20);
  }

  async #work() {
    if (this.sending) return;
    this.sending = true;
    let wait = 250;
    try {
      for (;;) {
        const stroke = this.queue.find((each) => !this.paused.has(each.index));
        if (!stroke) break;
        this.events.state("Saving", "busy");
        try {
          const { index, runs, number } = stroke;
          const revision = this.revisions.get(index);
          const said = await post(`api/images/${index}/strokes`, { tab: this.tab, number, revision, runs });
          this.revisions.set(index, said.revision);
          this.#drop(stroke);
          this.events.saved(index, said);
          wait = 250;
        } catch (error) {
          if (!(error instanceof Problem)) throw error;
          await this.#failed(stroke, error);
          if (error.status === 0 || error.status >= 500) {
            await pause(wait);
            wait = Math.min(2 * wait, LONGEST_PAUSE);
          }
          if (error.status === 403) return; // a server that does not know this tab: asking again changes nothing
        }
      }
      const left = this.queue.length;
      if (left) this.events.state(`${left} strokes wait: another tab draws`, "bad");
      else this.events.state("All saved", "");
    } finally {
      this.sending = false;
    }
  }

  async #failed(stroke, error) {
    const { index } = stroke;
    const waiting = `${this.queue.length} not saved`;
    if (error.status === 409 && error.reason === "changed") {
      this.revisions.set(index, await this.events.conflict(index));
    } else if (error.status === 409) {
      this.paused.add(index);
      this.events.held(index);
    } else if (error.status === 403) {
      this.events.state(`${waiting}: the server was started anew. Open the address that it has printed.`, "bad");
    } else if (error.status === 0 || error.status >= 500) {
      this.events.state(`${waiting}: ${error.message}`, "bad");
    } else {
      this.#drop(stroke);
      this.events.refused(index, error.message);
    }
  }

  #drop(stroke) {
    this.queue.splice(this.queue.indexOf(stroke), 1);
  }
}

function pause(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}
