"use strict";

// The trajectories of a run: a list that filters narrow, and one of them in full.
// Every text of the data reaches the page through textContent, so none becomes markup.

const data = JSON.parse(document.getElementById("data").textContent);
const { strings, columns } = data;
const count = columns.kind.length;

const ROW_HEIGHT = 54; // as in the style sheet
const KINDS = {
  training: "training",
  before: "evaluation, before",
  after: "evaluation, after",
};
const UNKNOWN = "unknown";

const element = (id) => document.getElementById(id);
const list = element("list");
const rowsBox = element("rows");
const detail = element("detail");
const statusLine = element("status");
const tokenLine = element("token");
const fields = [...element("filters").querySelectorAll("input, select")];

let shown = []; // numbers of the trajectories that pass the filters
let current = -1; // the number of the one in full, or -1
let tokens = []; // its tokens: {box, told}
let chosenToken = -1;

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const textOf = (column, row) => strings[columns[column][row]];
const kindOf = (row) => data.kinds[columns.kind[row]];
const number = (value) => String(Math.round(value * 1000) / 1000).replace("-", "−");

// --- filters ---

function fillSelects() {
  const choices = {
    kind: data.kinds.map((kind) => [kind, KINDS[kind]]),
    type: distinct(columns.type.map((at) => strings[at])),
    outcome: distinct(columns.outcome.map((at) => strings[at])),
    searches: distinct(columns.searches),
  };
  for (const [id, options] of Object.entries(choices)) {
    element(id).append(new Option("any", ""));
    for (const [value, label] of options) element(id).append(new Option(label, value));
    element(id).disabled = options.length < 2;
  }
}

function distinct(values) {
  const sorted = [...new Set(values)].sort((a, b) => (a < b ? -1 : 1));
  return sorted.map((value) => [String(value), value === "" ? UNKNOWN : String(value)]);
}

let lowerCase = null; // of every text, made for the first search

// For each text, whether it holds this word.
function textsWith(word) {
  lowerCase ??= strings.map((text) => text.toLowerCase());
  return lowerCase.map((text) => text.includes(word));
}

let textsOfRows = null; // the numbers of the texts of each trajectory

function textsOf(row) {
  textsOfRows ??= columns.kind.map((_, each) => [
    columns.id[each],
    columns.question[each],
    columns.answer[each],
    ...columns.golden_answers[each],
    ...columns.turns[each],
    ...columns.observations[each].flat(),
  ]);
  return textsOfRows[row];
}

function wordsSearchedFor() {
  const found = element("text").value.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g);
  return [...found].map((match) => match[1] ?? match[0]);
}

// The tests that a trajectory must pass, each of its number.
function testsOfFilters() {
  const tests = [];
  const wanted = (id) => element(id).value;
  if (wanted("kind")) {
    const kind = data.kinds.indexOf(wanted("kind"));
    tests.push((row) => columns.kind[row] === kind);
  }
  for (const id of ["type", "outcome"]) {
    if (element(id).selectedIndex > 0) {
      const text = strings.indexOf(wanted(id));
      tests.push((row) => columns[id][row] === text);
    }
  }
  if (wanted("searches")) {
    const searches = Number(wanted("searches"));
    tests.push((row) => columns.searches[row] === searches);
  }
  for (const [id, column, sign] of [
    ["first", "step", 1],
    ["last", "step", -1],
    ["least", "reward", 1],
    ["most", "reward", -1],
  ]) {
    if (wanted(id) === "") continue;
    const bound = Number(wanted(id));
    const values = columns[column];
    // An evaluation has no step.
    tests.push((row) => values[row] !== null && (values[row] - bound) * sign >= 0);
  }
  for (const word of wordsSearchedFor()) {
    const holds = textsWith(word);
    tests.push((row) => textsOf(row).some((text) => holds[text]));
  }
  return tests;
}

function filter() {
  const begin = performance.now();
  const tests = testsOfFilters();
  shown = [];
  for (let row = 0; row < count; row++) {
    if (tests.every((test) => test(row))) shown.push(row);
  }
  rowsBox.style.height = `${shown.length * ROW_HEIGHT}px`;
  const kept = shown.includes(current);
  if (!kept) choose(shown.length ? shown[0] : -1);
  reveal();
  drawRows();
  markWords();
  const all = count.toLocaleString("en");
  statusLine.textContent =
    shown.length === count
      ? `${all} trajectories`
      : `${shown.length.toLocaleString("en")} of ${all} trajectories`;
  statusLine.dataset.milliseconds = performance.now() - begin;
}

// --- the list ---

// Only what can be seen is in the page.
function drawRows() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 4);
  const fit = Math.ceil(list.clientHeight / ROW_HEIGHT) + 8;
  const boxes = shown.slice(first, first + fit).map((row, offset) => {
    const box = rowBox(row);
    box.style.top = `${(first + offset) * ROW_HEIGHT}px`;
    box.setAttribute("aria-posinset", first + offset + 1);
    box.setAttribute("aria-setsize", shown.length);
    return box;
  });
  if (!shown.length) boxes.push(make("p", "row", "No trajectory passes the filters."));
  rowsBox.replaceChildren(...boxes);
}

function rowBox(row) {
  const box = make("div", "row");
  box.id = `row-${row}`;
  box.setAttribute("role", "option");
  box.setAttribute("aria-selected", row === current);
  box.append(make("div", "", textOf("question", row) || textOf("id", row)));
  const facts = make("div");
  facts.append(outcomeMark(row), ` · ${[whence(row), ...shortFacts(row)].join(" · ")}`);
  box.append(facts);
  box.addEventListener("click", () => {
    choose(row);
    list.focus();
  });
  return box;
}

function outcomeMark(row) {
  const outcome = textOf("outcome", row);
  const looks = outcome === "right" ? "right" : outcome ? "" : UNKNOWN;
  return make("span", `outcome ${looks}`, outcome || "not judged");
}

function whence(row) {
  const kind = kindOf(row);
  return kind === "training" ? `step ${columns.step[row]}` : kind;
}

function shortFacts(row) {
  const facts = [];
  if (columns.reward[row] !== null) facts.push(rewardOf(row));
  facts.push(searchesOf(row));
  if (textOf("type", row)) facts.push(textOf("type", row));
  return facts;
}

function rewardOf(row) {
  const name = kindOf(row) === "training" ? "reward" : "exact match";
  return `${name} ${number(columns.reward[row])}`;
}

function searchesOf(row) {
  const searches = columns.searches[row];
  return searches === 1 ? "1 search" : `${searches} searches`;
}

// Scroll the chosen one into view.
function reveal() {
  const place = shown.indexOf(current);
  const top = Math.max(0, place) * ROW_HEIGHT;
  const bottom = top + ROW_HEIGHT - list.clientHeight;
  if (list.scrollTop > top) list.scrollTop = top;
  if (list.scrollTop < bottom) list.scrollTop = bottom;
}

function move(by) {
  if (!shown.length) return;
  const place = shown.indexOf(current) + by;
  choose(shown[Math.min(Math.max(place, 0), shown.length - 1)]);
}

// --- one trajectory in full ---

function choose(row) {
  current = row;
  tokens = [];
  chosenToken = -1;
  tokenLine.textContent = "";
  detail.replaceChildren(...(row < 0 ? [] : contentOf(row)));
  detail.scrollTop = 0;
  if (row >= 0) list.setAttribute("aria-activedescendant", `row-${row}`);
  else list.removeAttribute("aria-activedescendant");
  if (row >= 0) address(row);
  reveal();
  drawRows();
  markWords();
}

// Each trajectory has an address, for a bookmark.
function address(row) {
  try {
    history.replaceState(null, "", `#${row + 1}`);
  } catch {
    // A page in a frame may not be allowed to change it.
  }
}

function contentOf(row) {
  const golden = columns.golden_answers[row].map((at) => strings[at]);
  const question = textOf("question", row);
  const content = [make("h2", "", question || textOf("id", row))];
  if (golden.length) content.push(make("p", "gold", `gold answer: ${golden.join(" or ")}`));
  const group = groupOf(row);
  if (group.length > 1) content.push(groupBox(row, group));
  const columnsBox = make("div", "columns");
  for (const each of besides(row)) columnsBox.append(conversationBox(each));
  content.push(columnsBox);
  return content;
}

// The trajectories of one question in one step: what an advantage compares.
function groupOf(row) {
  if (kindOf(row) !== "training") return [];
  const alike = ["kind", "step", "question"];
  return columns.kind
    .map((_, other) => other)
    .filter((other) => alike.every((c) => columns[c][other] === columns[c][row]));
}

function groupBox(row, group) {
  const box = make("div", "group");
  box.append(`Its group of ${group.length} earned:`);
  for (const other of group) {
    const reward = columns.reward[other];
    const button = make("button", "", reward === null ? "–" : number(reward));
    button.type = "button";
    button.setAttribute("aria-current", other === row);
    button.title = `${textOf("outcome", other)}, ${searchesOf(other)}`;
    button.addEventListener("click", () => {
      choose(other);
      detail.querySelector('[aria-current="true"]').focus();
    });
    box.append(button);
  }
  return box;
}

// An evaluated question before training, and beside it after; else the row alone.
function besides(row) {
  if (kindOf(row) === "training") return [row];
  const pair = ["before", "after"].map((kind) => partners(kind).get(columns.id[row]));
  return pair.filter((found) => found !== undefined);
}

const partnersOf = {};

function partners(kind) {
  if (!partnersOf[kind]) {
    const rows = columns.kind.map((_, row) => row).filter((r) => kindOf(r) === kind);
    partnersOf[kind] = new Map(rows.map((row) => [columns.id[row], row]));
  }
  return partnersOf[kind];
}

function conversationBox(row) {
  const box = make("section");
  const heading = make("h3", "", headingOf(row));
  const copy = make("button", "", "Copy as JSON");
  copy.type = "button";
  copy.addEventListener("click", () => copyAsJson(row, copy));
  heading.append(copy);
  box.append(heading, factsBox(row));
  const turns = columns.turns[row];
  turns.forEach((_, turn) => {
    box.append(saidBox(row, turn));
    const observation = columns.observations[row][turn];
    if (observation) box.append(readBox(observation));
  });
  if (!turns.length) {
    box.append(make("p", "facts", "What was said is not in the file, only the answer."));
  }
  return box;
}

function headingOf(row) {
  const kind = kindOf(row);
  return kind === "training" ? `Step ${columns.step[row]}` : KINDS[kind];
}

function factsBox(row) {
  const answer = textOf("answer", row);
  const told = [columns.answer[row] < 0 ? "no answer" : `answered “${answer}”`];
  if (columns.reward[row] !== null) told.push(rewardOf(row) + partsOfReward(row));
  if (columns.advantage[row] !== null) told.push(advantageOf(row));
  told.push(searchesOf(row));
  if (textOf("type", row)) told.push(textOf("type", row));
  if (columns.sampled[row] !== null) {
    const [sampled, retrieved] = [columns.sampled[row], columns.retrieved[row]];
    told.push(`${sampled} tokens sampled, ${retrieved} appended`);
  }
  const facts = make("p", "facts");
  facts.append(outcomeMark(row), ` · ${told.join(" · ")}`);
  return facts;
}

function partsOfReward(row) {
  const parts = Object.entries(rewardsOf(row));
  const told = parts.map(([name, value]) => `${name} ${number(value)}`);
  return told.length ? ` (${told.join(", ")})` : "";
}

function rewardsOf(row) {
  const pairs = Object.entries(data.rewards).map(([name, values]) => [name, values[row]]);
  return Object.fromEntries(pairs.filter(([, value]) => value !== null));
}

function signed(value) {
  return value < 0 ? number(value) : `+${number(value)}`;
}

const advantageOf = (row) => `advantage ${signed(columns.advantage[row])}`;

function readBox(observation) {
  const box = make("div", "read");
  box.append(make("span", "owner", "read · appended, mask 0"));
  const text = observation.map((at) => strings[at]).join("\n");
  box.append(make("span", "", text));
  rememberToken(box, "what was read: appended, mask 0");
  return box;
}

function saidBox(row, turn) {
  const box = make("div", "said");
  box.append(make("span", "owner", "model · sampled, mask 1"));
  const text = strings[columns.turns[row][turn]];
  const lengths = columns.token_lengths[row]?.[turn];
  if (!lengths) {
    box.append(...tagged(text));
    rememberToken(box, "a turn of the model: sampled, mask 1");
    return box;
  }
  // A length counts characters; JavaScript counts those beyond 0xFFFF twice.
  const characters = [...text];
  let at = characters.length - lengths.reduce((sum, length) => sum + length, 0);
  if (at > 0) box.append(make("span", "tag", characters.slice(0, at).join("")));
  lengths.forEach((length, place) => {
    const piece = characters.slice(at, at + length).join("");
    at += length;
    box.append(tokenBox(row, turn, place, piece));
  });
  return box;
}

// The tags of a turn stand back behind what is between them.
function tagged(text) {
  return text
    .split(/(<\/?(?:think|search|answer)>)/)
    .map((part, place) => make("span", place % 2 ? "tag" : "", part));
}

function tokenBox(row, turn, place, piece) {
  const logprob = columns.logprobs[row][turn][place];
  const isTag = /^\s*<\/?(?:think|search|answer)>\s*$/.test(piece);
  const box = make("span", isTag ? "tag" : "", piece || "⏎");
  if (!piece) box.className = "tag";
  const told = [`“${piece || "end of turn"}”`, "model, mask 1"];
  if (logprob !== null) {
    const surprised = 1 - Math.exp(logprob);
    if (surprised > 0.01) {
      box.classList.add("unlikely");
      box.style.setProperty("--surprised", surprised);
    }
    told.push(`probability ${Math.exp(logprob).toPrecision(3)}`);
    told.push(`log-probability ${number(logprob)}`);
  }
  if (columns.advantage[row] !== null) told.push(advantageOf(row));
  box.title = told.join(" · ");
  rememberToken(box, box.title);
  return box;
}

function rememberToken(box, told) {
  const place = tokens.length;
  tokens.push({ box, told });
  box.addEventListener("click", () => chooseToken(place));
}

function chooseToken(place) {
  if (!tokens.length) return;
  tokens[chosenToken]?.box.classList.remove("chosen");
  chosenToken = Math.min(Math.max(place, 0), tokens.length - 1);
  const { box, told } = tokens[chosenToken];
  box.classList.add("chosen");
  box.scrollIntoView({ block: "nearest" });
  tokenLine.textContent = told;
}

// --- what was searched for, marked ---

function markWords() {
  if (!CSS.highlights) return;
  CSS.highlights.delete("found");
  const words = wordsSearchedFor();
  const ranges = [];
  for (const box of [detail, rowsBox]) {
    const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      for (const word of words) ranges.push(...rangesOf(walker.currentNode, word));
    }
  }
  if (ranges.length) CSS.highlights.set("found", new Highlight(...ranges));
}

function rangesOf(node, word) {
  const ranges = [];
  const text = node.data.toLowerCase();
  for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) {
    const range = new Range();
    range.setStart(node, at);
    range.setEnd(node, Math.min(at + word.length, node.length));
    ranges.push(range);
  }
  return ranges;
}

// --- copying ---

// A trajectory as the run's own files have it.
function asObject(row) {
  const object = { from: kindOf(row) };
  if (columns.step[row] !== null) object.step = columns.step[row];
  for (const name of ["id", "type", "question", "outcome", "stop"]) {
    if (columns[name][row] >= 0) object[name] = textOf(name, row);
  }
  object.golden_answers = columns.golden_answers[row].map((at) => strings[at]);
  object.answer = columns.answer[row] < 0 ? null : textOf("answer", row);
  object.turns = columns.turns[row].map((at) => strings[at]);
  object.observations = columns.observations[row].map((lines) =>
    lines.map((at) => strings[at]).join("\n"),
  );
  object.rewards = rewardsOf(row);
  for (const name of [
    "reward",
    "advantage",
    "searches",
    "sampled",
    "retrieved",
    "token_lengths",
    "logprobs",
  ]) {
    if (columns[name][row] !== null) object[name] = columns[name][row];
  }
  return object;
}

async function copyAsJson(row, button) {
  const text = JSON.stringify(asObject(row), null, 1);
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Some browsers allow this only on pages from a server.
    const box = document.body.appendChild(make("textarea", "", text));
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  tokenLine.textContent = "Copied.";
  button?.focus();
}

// --- keys ---

const KEYS = {
  j: () => move(1),
  ArrowDown: () => move(1),
  k: () => move(-1),
  ArrowUp: () => move(-1),
  PageDown: () => move(10),
  PageUp: () => move(-10),
  Home: () => move(-count),
  End: () => move(count),
  ArrowRight: () => chooseToken(chosenToken + 1),
  ArrowLeft: () => chooseToken(chosenToken - 1),
  "/": () => element("text").select(),
  c: () => current >= 0 && copyAsJson(current),
  Escape: () => element("filters").reset(),
};
// With the conversation in focus, these scroll it.
const SCROLLS = ["ArrowDown", "ArrowUp", "PageDown", "PageUp", "Home", "End"];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) {
    const leaves = event.key === "Escape";
    const entered = event.key === "Enter" && event.target.matches("input");
    if (leaves || entered) {
      event.preventDefault();
      list.focus();
    }
    return;
  }
  if (event.target === detail && SCROLLS.includes(event.key)) return;
  if (Object.hasOwn(KEYS, event.key)) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

for (const field of fields) field.addEventListener("input", filter);
element("filters").addEventListener("submit", (event) => event.preventDefault());
element("filters").addEventListener("reset", () => {
  // The fields are emptied after this event.
  setTimeout(() => {
    filter();
    list.focus();
  });
});
list.addEventListener("scroll", drawRows);
addEventListener("resize", drawRows);
addEventListener("hashchange", openAddress);

function openAddress() {
  const row = Number(location.hash.slice(1)) - 1;
  if (Number.isInteger(row) && row >= 0 && row < count) choose(row);
}

fillSelects();
filter();
openAddress();
list.focus({ preventScroll: true });
