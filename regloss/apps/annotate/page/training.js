// "Train on these": the configuration, the run's progress, its report, and what to draw on next.

import { Problem, get, post } from "./api.js";

const EVERY = 1000; // milliseconds between two looks

export class TrainingPanel {
  // `events`: `flush()` before a training, `message(text)`, `network(name)` once there is one, `unsure(found)` with
  // uncertainties by index, `next()`.
  constructor(events) {
    this.events = events;
    this.state = "none";
    this.dialog = document.getElementById("training-dialog");
    on("train", "click", () => this.#plan());
    on("epochs", "change", () => this.#show());
    on("prior", "change", () => this.#show());
    on("start-training", "click", () => this.#start());
    on("stop-training", "click", () => this.#ask(() => post("api/training/stop", {})));
    on("show-report", "click", () => {
      document.getElementById("report").src = "api/training/report";
      document.getElementById("report-dialog").showModal();
    });
    on("unsure", "click", () => this.#unsure());
    this.watch();
  }

  // Look how it stands, and again while something runs.
  async watch() {
    clearTimeout(this.timer);
    let found;
    try {
      found = await get("api/training");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.timer = setTimeout(() => this.watch(), 4 * EVERY);
      return;
    }
    const ended = this.state === "running" && found.state !== "running";
    this.state = found.state;
    this.#paint(found);
    if (ended && found.state === "failed") this.events.message(`The training failed. ${found.said}`);
    if (found.network) this.events.network(found.network);
    if (ended && found.problem) {
      this.events.message(found.problem);
    } else if (ended && found.state === "done") {
      this.events.message("The training is done. Its network answers now, too: choose it under Answer.", "plain");
      this.asked = false;
    }
    if (found.state === "running") this.timer = setTimeout(() => this.watch(), EVERY);
  }

  async #plan() {
    document.getElementById("training-problem").textContent = "";
    document.getElementById("configuration").textContent = "";
    await this.events.flush();
    this.dialog.showModal();
    await this.#show();
  }

  get #settings() {
    const number = (id) => Number(document.getElementById(id).value);
    return { epochs: number("epochs"), weight: number("prior") };
  }

  async #show() {
    const problem = document.getElementById("training-problem");
    const start = document.getElementById("start-training");
    start.disabled = true;
    try {
      const { configuration } = await post("api/training/plan", this.#settings);
      document.getElementById("configuration").textContent = configuration;
      problem.textContent = "";
      start.disabled = false;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      problem.textContent = error.message;
    }
  }

  async #start() {
    try {
      await post("api/training", this.#settings);
      this.dialog.close();
      this.state = "running";
      await this.watch();
      document.getElementById("h-training").scrollIntoView({ block: "start", behavior: "smooth" });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      document.getElementById("training-problem").textContent = error.message;
    }
  }

  #paint(found) {
    const running = found.state === "running";
    const part = found.steps ? found.step / found.steps : 0;
    show("running", running);
    show("train", !running);
    show("show-report", found.report && !running);
    show("unsure", Boolean(found.network));
    document.getElementById("training-progress").value = part;
    const words = {
      none: "A network learns from the scribbles, and segments images without any.",
      running: found.step
        ? `${found.run}: step ${found.step} of ${found.steps}, on ${found.images} images`
        : `${found.run}: starting, on ${found.images} images`,
      done: `${found.run} is done.`,
      stopped: `${found.run} was stopped.`,
      failed: `${found.run} failed.`,
    };
    document.getElementById("training-text").textContent = words[found.state];
    document.documentElement.dataset.training = found.state;
    if (running) this.#chart(found.losses);
  }

  #chart(losses) {
    const canvas = document.getElementById("losses");
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    context.clearRect(0, 0, width, height);
    if (losses.length < 2) return;
    const [low, high] = [Math.min(...losses), Math.max(...losses)];
    context.beginPath();
    losses.forEach((loss, i) => {
      const x = 2 + ((width - 4) * i) / (losses.length - 1);
      const y = 4 + (height - 8) * (1 - (loss - low) / (high - low || 1));
      context[i ? "lineTo" : "moveTo"](x, y);
    });
    context.strokeStyle = "#7cc0ff";
    context.lineWidth = 2;
    context.lineJoin = "round";
    context.stroke();
    canvas.setAttribute("aria-label", `Loss, epoch by epoch: ${losses.at(0).toFixed(3)} to ${losses.at(-1).toFixed(3)}`);
  }

  // Find the image that the network is least sure of, and go there.
  async #unsure() {
    const text = document.getElementById("unsure-text");
    await this.#ask(async () => {
      if (!this.asked) await post("api/uncertainty", {});
      this.asked = true;
      for (;;) {
        const { found, images, problem } = await get("api/uncertainty");
        const known = Object.entries(found).map(([index, value]) => [Number(index), value]);
        this.events.unsure(new Map(known));
        text.textContent = `${known.length} of ${images} images looked at`;
        if (known.length >= images || problem) {
          text.textContent = problem;
          break;
        }
        await new Promise((done) => setTimeout(done, 300));
      }
      this.events.next();
    });
  }

  async #ask(work) {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      this.events.message(error.message);
    }
  }
}

function on(id, event, handler) {
  document.getElementById(id).addEventListener(event, handler);
}

function show(id, wanted) {
  document.getElementById(id).hidden = !wanted;
}
