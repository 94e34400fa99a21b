// The page: one image of a folder after the other, strokes on it, and the answer to them.

import { Answers } from "./answers.js";
import { Problem, get, labels as getLabels, post } from "./api.js";
import { Film } from "./film.js";
import { LabelMap } from "./labels.js";
import { Pen } from "./pen.js";
import { Saver } from "./saver.js";
import { TrainingPanel } from "./training.js";
import { View } from "./view.js";

const SIGN_OF_LIFE = 4000; // milliseconds; a tab keeps its image for some times that
const MOST_UNDO = 300;

const byId = (id) => document.getElementById(id);
const tab = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

const set = await get("api/set");
const view = new View(byId("viewport"));
const histories = new Map(); // of each image: {past, future}, lists of {forward, backward}
let classes = set.classes;
let current = null; // {index, labels, problem}
let chosen = Math.min(1, classes.length - 1);
let held = false;

// ---- what is said

function say(text) {
  byId("spoken").textContent = text;
}

function message(text, kind = "") {
  const box = document.createElement("div");
  box.className = `message ${kind}`;
  const words = document.createElement("p");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "small";
  close.textContent = "Close";
  close.addEventListener("click", () => box.remove());
  box.append(words, close);
  byId("messages").append(box);
  if (kind === "plain") setTimeout(() => box.remove(), 12000);
}

function hint(text) {
  byId("hint").hidden = !text;
  byId("hint").textContent = text;
}

addEventListener("unhandledrejection", (event) => message(`Something went wrong: ${event.reason?.message ?? event.reason}`));
addEventListener("error", (event) => message(`Something went wrong: ${event.message}`));

// ---- strokes

const saver = new Saver(tab, {
  state(text, kind) {
    byId("saved").textContent = text;
    byId("saved").className = `saved ${kind}`;
  },
  saved(index, { drawn, request }) {
    answers.end(index, request);
    film.setDrawn(index, drawn);
    paintProgress();
  },
  async conflict(index) {
    const found = await getLabels(`api/images/${index}/scribbles`);
    histories.delete(index);
    if (current?.index === index) {
      showLabels(found);
      message("These scribbles were changed by another tab or program, and have been read anew. Your last strokes were added.");
    }
    return found.revision;
  },
  held(index) {
    if (current?.index === index) setHeld(false);
  },
  refused(index, problem) {
    answers.end(index);
    message(problem);
    if (current?.index === index) open(index);
  },
});

const board = {
  get labels() {
    return current?.labels;
  },
  get locked() {
    return !held || !current?.labels;
  },
  get value() {
    return chosen;
  },
  get color() {
    return cssColor(classes[chosen].color);
  },
  get radius() {
    return Number(byId("size").value) / 2;
  },
  painted(box) {
    view.drawStrokes(current.labels, colors(), box);
  },
  finished() {
    const runs = current.labels.end();
    if (!runs.forward.length) return;
    const history = historyOf(current.index);
    history.past.push(runs);
    if (history.past.length > MOST_UNDO) history.past.shift();
    history.future = [];
    send(runs.forward);
    paintHistory();
  },
  cancelled(box) {
    if (box) view.drawStrokes(current.labels, colors(), box);
  },
  say,
  hint,
};

function send(runs) {
  answers.begin();
  saver.push(current.index, runs);
}

function historyOf(index) {
  if (!histories.has(index)) histories.set(index, { past: [], future: [] });
  return histories.get(index);
}

function undo(back) {
  if (board.locked) return;
  pen.cancel();
  const { past, future } = historyOf(current.index);
  const runs = (back ? past : future).pop();
  if (!runs) return;
  (back ? future : past).push(runs);
  const wanted = back ? runs.backward : runs.forward;
  const box = current.labels.apply(wanted);
  view.drawStrokes(current.labels, colors(), box);
  send(wanted);
  paintHistory();
  say(back ? "Undone" : "Done again");
}

function paintHistory() {
  const history = current ? historyOf(current.index) : { past: [], future: [] };
  byId("undo").disabled = board.locked || !history.past.length;
  byId("redo").disabled = board.locked || !history.future.length;
}

const pen = new Pen(view, board);

// ---- answers

const answers = new Answers(
  tab,
  (answer) => {
    if (answer.data.length) view.drawAnswer(answer, colors());
    else view.clearAnswer();
  },
  (text, kind) => {
    byId("state").textContent = text;
    byId("state").className = `state ${kind}`;
  },
  () => byId("state").classList.remove("good"),
);

function weightOf(slider) {
  return set.settings.weight * 10 ** (slider / 10);
}

// The default in the middle, twice as much or half two steps away, and none at the left end.
function placeOf(slider) {
  return slider === 0 ? 0 : set.settings.place * 2 ** ((slider - 10) / 2);
}

function readSettings() {
  const sized = byId("sized").checked;
  return {
    costs: byId("costs").value,
    weight: weightOf(Number(byId("weight").value)),
    place: placeOf(Number(byId("place").value)),
    shaped: Number(byId("shaped").value || 1),
    star: byId("star").checked,
    convex: byId("convex").checked,
    least: sized ? byId("least").valueAsNumber / 100 || 0 : 0,
    most: sized ? byId("most").valueAsNumber / 100 || 0 : 1,
  };
}

let asking;
function changeSettings() {
  byId("share").hidden = !byId("sized").checked;
  byId("weight-text").textContent = weightOf(Number(byId("weight").value)).toPrecision(2);
  byId("place-text").textContent = placeOf(Number(byId("place").value)).toPrecision(2);
  byId("place").disabled = byId("costs").value !== "colors";
  answers.settings = readSettings();
  clearTimeout(asking);
  asking = setTimeout(() => answers.ask(), 80);
}

// Write the answers of all images that are drawn on, by the settings as they are.
async function saveMasks() {
  const text = byId("masks-text");
  byId("save-masks").disabled = true;
  text.hidden = false;
  try {
    if (current) await saver.settled(current.index);
    let said = await post("api/masks", { tab, settings: answers.settings });
    while (said.running) {
      text.textContent = `${said.done} of ${said.images} saved`;
      await new Promise((done) => setTimeout(done, 200));
      said = await get("api/masks");
    }
    text.textContent = `${said.done} masks in ${set.folder}/${said.folder}`;
    if (said.problems.length) message(`Without a mask: ${said.problems.join(" ")}`);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    text.textContent = error.message;
  } finally {
    byId("save-masks").disabled = false;
  }
}

// ---- images

async function open(index) {
  pen.cancel();
  const before = current?.index;
  if (before !== undefined && before !== index) {
    saver.settled(before).then(() => {
      if (current.index !== before) leave(before);
    });
  }
  current = { index, labels: null };
  held = false;
  film.select(index);
  const { name, width, height } = set.images[index];
  byId("image-name").textContent = name;
  byId("where").title = name;
  document.title = `${name} - ${set.folder}`;
  view.clearAnswer();
  view.open(width, height);
  byId("elsewhere").hidden = true;
  byId("loading").hidden = false;
  byId("picture").src = `api/images/${index}/picture`;
  byId("picture").alt = name;
  paintProgress();
  paintHistory();
  try {
    await saver.settled(index);
    const [found, lease] = await Promise.all([
      getLabels(`api/images/${index}/scribbles`),
      post(`api/images/${index}/claim`, { tab }),
      byId("picture").decode().catch(() => {
        if (current.index === index) message(`${name} cannot be shown.`); // else it is another picture by now
      }),
    ]);
    if (current.index !== index) return;
    saver.revisions.set(index, found.revision);
    showLabels(found);
    setHeld(lease.held);
    say(`Image ${film.place + 1} of ${set.images.length}, ${name}`);
    document.documentElement.dataset.opened = String(index);
    await answers.open(index);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (current.index === index) message(error.message);
  } finally {
    if (current.index === index) byId("loading").hidden = true;
  }
}

// Labels as the server has them, with the strokes that it does not have yet.
function showLabels({ width, height, data }) {
  current.labels = new LabelMap(width, height, new Uint8Array(data));
  for (const runs of saver.pending(current.index)) current.labels.apply(runs);
  repaintStrokes();
  paintHistory();
}

function repaintStrokes() {
  if (!current?.labels) return;
  const { width, height } = current.labels;
  view.drawStrokes(current.labels, colors(), { left: 0, top: 0, right: width, bottom: height });
}

function go(step) {
  const index = film.neighbour(step);
  if (index !== null) open(index);
}

function leave(index) {
  navigator.sendBeacon(
    `api/images/${index}/release`,
    new Blob([JSON.stringify({ tab })], { type: "application/json" }),
  );
}

function setHeld(value) {
  if (held !== value) document.documentElement.dataset.held = String(value);
  held = value;
  byId("elsewhere").hidden = held;
  byId("viewport").classList.toggle("locked", !held);
  if (!held) pen.cancel();
  paintHistory();
  pen.cursor();
}

// Keep the image, or find out that another tab has it; get it back where that one has ended. What another tab or program
// has drawn meanwhile is read.
async function keep() {
  if (!current?.labels || pen.busy) return;
  const { index } = current;
  try {
    const lease = await post(`api/images/${index}/claim`, { tab });
    if (current.index !== index || pen.busy) return;
    const changed = lease.revision > saver.revisions.get(index) && !saver.pending(index).length;
    if (changed) histories.delete(index);
    if (changed || (lease.held && !held)) await open(index);
    else if (!lease.held) setHeld(false);
  } catch (error) {
    if (!(error instanceof Problem)) throw error; // strokes that cannot be saved say so
  }
}

async function take() {
  const { index } = current;
  try {
    await post(`api/images/${index}/claim`, { tab, take: true });
    const found = await getLabels(`api/images/${index}/scribbles`);
    if (current.index !== index) return;
    saver.revisions.set(index, found.revision);
    histories.delete(index);
    showLabels(found);
    setHeld(true);
    saver.resume(index);
    await answers.ask();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    message(error.message);
  }
}

// ---- panel

function cssColor([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function colors() {
  return classes.map((each) => each.color);
}

function paintProgress() {
  const total = set.images.length;
  byId("drawn").max = total;
  byId("drawn").value = film.drawn;
  byId("drawn-text").textContent = `${film.drawn} of ${total} drawn on`;
  byId("image-number").textContent = `${film.place + 1} / ${total}`;
  byId("previous").disabled = film.neighbour(-1) === null;
  byId("next").disabled = film.neighbour(1) === null;
}

function paintClasses() {
  const rows = classes.map(({ name, color }, index) => {
    const row = document.createElement("button");
    row.type = "button";
    row.className = "class";
    row.setAttribute("role", "radio");
    row.setAttribute("aria-checked", String(index === chosen));
    row.tabIndex = index === chosen ? 0 : -1;
    const key = document.createElement("kbd");
    key.textContent = index < 10 ? String(index) : "";
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = cssColor(color);
    const label = document.createElement("span");
    label.className = "name";
    label.textContent = name;
    row.append(key, swatch, label);
    row.addEventListener("click", () => choose(index));
    return row;
  });
  byId("classes").replaceChildren(...rows);
  const options = classes.map(({ name }, index) => new Option(name, String(index)));
  const shaped = byId("shaped").value;
  byId("shaped").replaceChildren(...options);
  byId("shaped").value = shaped || String(Math.min(1, classes.length - 1));
  paintClassButton();
}

// Where the panel is hidden, one button says which class is drawn, and goes on to the next.
function paintClassButton() {
  const button = byId("class-button");
  const { name, color } = classes[chosen];
  button.querySelector(".swatch").style.background = cssColor(color);
  button.title = `Class ${name}; to the next one`;
  button.setAttribute("aria-label", button.title);
}

function choose(index, focus = false) {
  if (index >= classes.length) return;
  chosen = index;
  [...byId("classes").children].forEach((row, place) => {
    row.setAttribute("aria-checked", String(place === index));
    row.tabIndex = place === index ? 0 : -1;
    if (place === index && focus) row.focus();
  });
  paintClassButton();
  if (pen.tool === "eraser" || pen.tool === "hand") chooseTool("brush");
  say(`Class ${index}, ${classes[index].name}`);
  pen.cursor();
}

function chooseTool(tool) {
  pen.choose(tool);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    if (button.dataset.tool === tool) say(button.getAttribute("aria-label"));
  }
}

function paintSize() {
  byId("size-text").textContent = `${byId("size").value} px`;
  pen.cursor();
}

function changeSize(factor) {
  const slider = byId("size");
  const value = Number(slider.value);
  slider.value = String(factor > 1 ? Math.max(value + 1, Math.round(value * factor)) : Math.min(value - 1, Math.round(value * factor)));
  paintSize();
}

function paintPicture() {
  // Five steps double or halve.
  const [brightness, contrast] = ["brightness", "contrast"].map((id) => Math.round(100 * 2 ** (byId(id).value / 5)));
  byId("brightness-text").textContent = `${brightness} %`;
  byId("contrast-text").textContent = `${contrast} %`;
  view.show(brightness, contrast);
}

function paintOverlay() {
  const opacity = byId("opacity").value;
  byId("opacity-text").textContent = `${opacity} %`;
  byId("answer").style.opacity = byId("overlay").checked ? String(opacity / 100) : "0";
}

// ---- editing classes

function editClasses() {
  byId("class-rows").replaceChildren(...classes.map(classRow));
  byId("classes-problem").textContent = "";
  byId("classes-dialog").showModal();
}

function classRow({ name, color }) {
  const item = document.createElement("li");
  const row = document.createElement("div");
  row.className = "row";
  const text = document.createElement("input");
  text.type = "text";
  text.value = name;
  text.maxLength = 60;
  text.setAttribute("aria-label", "Name of the class");
  const picker = document.createElement("input");
  picker.type = "color";
  picker.value = `#${color.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  picker.setAttribute("aria-label", "Colour of the class");
  row.append(text, picker);
  item.append(row);
  return item;
}

function addClass() {
  const palette = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2"];
  const rows = byId("class-rows").children;
  const used = new Set([...rows].map((row) => row.querySelector("input[type=color]").value));
  const free = palette.find((color) => !used.has(color)) ?? "#9aa0a6";
  const color = [1, 3, 5].map((at) => parseInt(free.slice(at, at + 2), 16));
  const item = classRow({ name: "", color });
  byId("class-rows").append(item);
  item.querySelector("input").focus();
}

async function saveClasses() {
  const wanted = [...byId("class-rows").children].map((row) => {
    const hex = row.querySelector("input[type=color]").value;
    return {
      name: row.querySelector("input[type=text]").value,
      color: [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)),
    };
  });
  try {
    const said = await post("api/classes", { classes: wanted });
    classes = said.classes;
    byId("classes-dialog").close();
    paintClasses();
    repaintStrokes();
    await answers.ask();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    byId("classes-problem").textContent = error.message;
  }
}

// ---- keys

function shortcut(event) {
  const typing = event.target.closest?.("input:not([type=range]):not([type=checkbox]), select, textarea, dialog");
  if (typing) return;
  const control = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (control && key === "z") {
    event.preventDefault();
    undo(!event.shiftKey);
    return;
  }
  if (control && key === "y") {
    event.preventDefault();
    undo(false);
    return;
  }
  if (control || event.altKey) return;
  if (key === "pagedown" || key === "pageup") {
    event.preventDefault();
    go(key === "pagedown" ? 1 : -1);
  } else if (key === "escape") {
    pen.cancel();
  } else if (key === "backspace" && pen.points.length) {
    event.preventDefault();
    pen.removePoint();
  } else if (byId("single-keys").checked) {
    single(event, key);
  }
}

function single(event, key) {
  const tools = { b: "brush", e: "eraser", l: "line", p: "polygon", h: "hand" };
  const others = {
    "[": () => changeSize(0.8),
    "]": () => changeSize(1.25),
    "+": () => view.zoom(1.25),
    "=": () => view.zoom(1.25),
    "-": () => view.zoom(0.8),
    f: () => view.fit(),
    c: () => pen.close(),
    x: () => document.body.classList.add("peek"),
    o: () => {
      byId("overlay").checked = !byId("overlay").checked;
      paintOverlay();
    },
    "?": () => byId("help").showModal(),
  };
  if (/^[0-9]$/.test(key)) choose(Number(key));
  else if (key in tools) chooseTool(tools[key]);
  else if (key in others) others[key]();
  else if (key === " " && !event.target.closest("button, summary, input")) pen.setSpace(true);
  else return;
  event.preventDefault();
}

// ---- begin

const film = new Film(byId("film"), set.images, open);
const training = new TrainingPanel({
  async flush() {
    if (current) await saver.settled(current.index);
  },
  message,
  network(name) {
    const option = byId("costs").querySelector("[value=network]");
    option.disabled = false;
    option.textContent = `network ${name}`;
  },
  unsure(found) {
    film.setUnsure(found);
    byId("order").disabled = !found.size;
  },
  next() {
    const index = film.leastSure;
    if (index === null) message("All images have scribbles.", "plain");
    else open(index);
  },
});

byId("folder").textContent = set.folder;
byId("folder").title = set.folder;
byId("costs").querySelector("[value=network]").disabled = !set.run;
if (set.run) byId("costs").value = "network";
byId("order").disabled = true;
for (const button of document.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => chooseTool(button.dataset.tool));
}
const clicks = {
  previous: () => go(-1),
  next: () => go(1),
  undo: () => undo(true),
  redo: () => undo(false),
  "zoom-in": () => view.zoom(1.25),
  "zoom-out": () => view.zoom(0.8),
  "zoom-fit": () => view.fit(),
  "help-button": () => byId("help").showModal(),
  "class-button": () => choose((chosen + 1) % classes.length),
  "save-masks": saveMasks,
  "edit-classes": editClasses,
  "add-class": addClass,
  "save-classes": saveClasses,
  take,
  "reset-image": () => {
    byId("brightness").value = byId("contrast").value = "0";
    paintPicture();
  },
  "panel-button": () => {
    const opened = byId("panel").classList.toggle("open");
    byId("panel-button").setAttribute("aria-expanded", String(opened));
  },
};
for (const [id, handler] of Object.entries(clicks)) byId(id).addEventListener("click", handler);
byId("size").addEventListener("input", paintSize);
byId("opacity").addEventListener("input", paintOverlay);
byId("overlay").addEventListener("change", paintOverlay);
byId("order").addEventListener("change", () => {
  film.arrange(byId("order").value === "unsure");
  paintProgress();
});
for (const id of ["brightness", "contrast"]) byId(id).addEventListener("input", paintPicture);
for (const id of ["costs", "weight", "place", "shaped", "star", "convex", "sized", "least", "most"]) {
  byId(id).addEventListener("input", changeSettings);
}
byId("classes").addEventListener("keydown", (event) => {
  const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose((chosen + steps[event.key] + classes.length) % classes.length, true);
});
byId("classes-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("input[type=text]")) {
    event.preventDefault();
    saveClasses();
  }
});
addEventListener("keydown", shortcut);
addEventListener("keyup", (event) => {
  if (event.key === " ") pen.setSpace(false);
  if (event.key.toLowerCase() === "x") document.body.classList.remove("peek");
});
addEventListener("blur", () => {
  pen.setSpace(false);
  document.body.classList.remove("peek");
});
addEventListener("pagehide", () => {
  if (current) leave(current.index);
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") keep();
});
setInterval(keep, SIGN_OF_LIFE);

// A stroke of a sixtieth of an image is easy to see, and leaves room in what is narrow.
const longest = set.images.map(({ width, height }) => Math.max(width, height)).sort((one, other) => one - other);
byId("size").value = String(Math.max(3, Math.round(longest[longest.length >> 1] / 60)));

paintClasses();
paintSize();
paintOverlay();
paintPicture();
changeSettings();
clearTimeout(asking);
for (const note of set.notes) message(note, "plain");
const firstOpen = set.images.findIndex((image) => !image.drawn);
await open(firstOpen < 0 ? 0 : firstOpen);
