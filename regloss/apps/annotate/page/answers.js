// Answers: asked for by every stroke, shown as they come. Requests wait at the server, one at a time.

import { Problem, labels, post } from "./api.js";

export class Answers {
  // `show(answer)`: called with each answer of the image that is open; `state(text, kind)`: what to say of it;
  // `stale()`: that what is said is of the strokes before.
  constructor(tab, show, state, stale) {
    this.tab = tab;
    this.show = show;
    this.state = state;
    this.stale = stale;
    this.index = null;
    this.settings = {};
    this.wanted = new Map(); // number of the last request of each image
    this.have = new Map(); // its last answer
    this.sending = 0; // strokes whose requests have no number yet
    this.expected = 0;
  }

  // Look at another image; its answer follows.
  async open(index) {
    this.index = index;
    await this.ask();
  }

  // Ask for an answer by the settings as they are.
  async ask() {
    const index = this.index;
    if (index === null) return;
    this.begin();
    try {
      const said = await post(`api/images/${index}/answer`, { tab: this.tab, settings: this.settings });
      this.end(index, said.request);
    } catch (error) {
      this.end(index);
      if (!(error instanceof Problem)) throw error;
      this.state(error.message, "bad");
    }
  }

  // A request is on its way.
  begin() {
    this.expected = performance.now();
    this.stale();
    this.sending++;
    this.#listen();
  }

  // It has arrived, and has a number; or not.
  end(index, number) {
    this.sending--;
    if (number !== undefined) this.wanted.set(index, number);
    this.#listen();
  }

  #due() {
    if (this.index === null) return false;
    const have = this.have.get(this.index);
    const wanted = this.wanted.get(this.index) ?? 0;
    return this.sending > 0 || (wanted > 0 && (!have || have.request < wanted || !have.final));
  }

  async #listen() {
    if (this.listening) return;
    this.listening = true;
    try {
      while (this.#due()) {
        const index = this.index;
        const answer = await labels(`api/images/${index}/answer?after=${this.have.get(index)?.number ?? 0}`);
        if (!answer) continue;
        const { number, request, final } = answer;
        this.have.set(index, { number, request, final });
        if (index === this.index) this.#tell(answer);
      }
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.state(error.message, "bad");
    } finally {
      this.listening = false;
    }
  }

  #tell(answer) {
    const last = performance.now() - this.expected;
    document.documentElement.dataset.answered = `${answer.number} ${answer.state}`;
    document.documentElement.dataset.latency = last.toFixed(1);
    this.show(answer);
    const took = ` in ${answer.seconds < 1 ? `${Math.round(1000 * answer.seconds)} ms` : `${answer.seconds.toFixed(1)} s`}`;
    const size = answer.factor > 1 ? `, at 1/${answer.factor} of the size` : "";
    const words = {
      waiting: [answer.message, ""],
      problem: [answer.message, "bad"],
      preview: [`Preview${took}${size}; solving`, ""],
      optimal: [`Optimal${took}${size}`, "good"],
      bounded: [`At most ${percent(answer.gap)} above the optimum${size}`, "good"],
      approximate: [answer.message || `Found${took}${size}${answer.final ? "" : "; looking for a bound"}`, ""],
    };
    this.state(...words[answer.state]);
  }
}

function percent(fraction) {
  const value = 100 * fraction;
  return `${value < 0.1 ? value.toPrecision(1) : value.toFixed(1)} %`;
}
