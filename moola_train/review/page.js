// One window after the other: shows it, takes the answer, sends it, goes on. The next window is
// here before it is needed, and an answer counts as saved once the server says so.
import { Chart } from "./chart.js";
import { Marking } from "./marking.js";

const NONE = "none";
const UNCLEAR = ""; // an expansion, but not clear which class stands before it; no class is called so
const PING_MS = 30_000;
const PAUSE_MS = 90_000; // longer than this between two answers is a break
const RATE_ANSWERS = 20;

const byId = (id) => document.getElementById(id);
const grouped = (count) => count.toLocaleString("en");
const byAction = (name) => document.querySelector(`[data-action=${name}]`);
const page = crypto.randomUUID();
const chart = new Chart(byId("plot"), byId("base"), byId("overlay"));
const marking = new Marking(chart, onMark, showReadout);
const drafts = new Map(); // unsent answers by window, so that undoing loses none
let settings = { classes: [] };
let current = null; // the window on show
let following = null; // the one after it
let choice = null; // a class, NONE, UNCLEAR or null
let touched = false; // whether the answer is more than a suggestion
let busy = true;
let asked = null; // the window that was to be answered while busy
let durations = []; // ms of the last answers
let lastAnswer = null;

// ---- server -----------------------------------------------------------------------------------

async function call(action, values = {}) {
  let response;
  try {
    response = await fetch("api/" + action, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ page, ...values }),
    });
  } catch {
    throw new Error("the server does not answer; start the review again and open its new address");
  }
  const reply = await response.json();
  if (reply.progress) showProgress(reply.progress);
  if (!response.ok && response.status !== 409) throw new Error(reply.error);
  return reply;
}

const have = () => [current, following].filter(Boolean).map((window) => window.id);

async function fetchFollowing() {
  if (current && !following) following = (await call("next", { have: have() })).next;
}

// Send what becomes of the current window; meanwhile the next one is on show already.
async function send(action, values) {
  const sent = current;
  const next = following;
  const began = performance.now();
  keepDraft();
  busy = true;
  following = null;
  if (next) show(next);
  try {
    const reply = await call(action, { id: sent.id, version: sent.version, have: have(), ...values });
    drafts.delete(sent.id);
    if (next) following = reply.next;
    else show(reply.next);
    if (reply.error) warn(reply.error);
    else saved(action === "skip" ? "put aside" : "saved", began);
  } catch (error) {
    following = next;
    show(sent);
    warn(`not saved: ${error.message}`);
  } finally {
    rest();
  }
}

// Nothing is under way any more. An answer that was given meanwhile counts now, if its window is
// still the one on show.
function rest() {
  busy = false;
  const given = asked !== null && asked === current;
  asked = null;
  if (given) accept();
}

function saved(what, began) {
  const now = performance.now();
  if (lastAnswer !== null && began - lastAnswer < PAUSE_MS) durations.push(began - lastAnswer);
  durations = durations.slice(-RATE_ANSWERS);
  lastAnswer = began;
  document.documentElement.dataset.savedMs = (now - began).toFixed(1);
  const mean = durations.reduce((sum, duration) => sum + duration, 0) / durations.length;
  byId("rate").textContent = durations.length < 3 ? "" : `· ${grouped(Math.round(3.6e6 / mean))} an hour`;
  tell(`${what} at ${new Date().toLocaleTimeString("en-GB")} in ${settings.file}`);
}

// ---- what is done to a window -----------------------------------------------------------------

function accept() {
  if (busy) {
    if (touched) asked = current; // Enter pressed twice takes no suggestion that nobody looked at
    return;
  }
  if (!current) return ping(); // perhaps another page has left
  const { start, end } = chart.mark;
  if (choice === null) return warn(`say what stands before it: ${typeKeys()}`);
  if (choice !== NONE && start === null) return warn("drag over the expansion, or press 0 for none");
  const span = choice === NONE ? { start: null, end: null } : { start, end };
  send("answer", { label: choice === UNCLEAR ? null : choice, ...span, comment: byId("comment").value });
}

function skip() {
  if (!busy && current) send("skip", { comment: byId("comment").value });
}

async function backTo(action) {
  if (busy) return;
  busy = true;
  try {
    const reply = await call(action, { have: have() });
    if (reply.error) return warn(reply.error);
    if (current) keepDraft();
    if (action === "undo") {
      drafts.delete(reply.window.id);
      following = current; // the one that was to follow it stays ours and comes again
      show(reply.window);
      tell("taken back; put it right");
    } else if (current) {
      following ??= reply.next;
    } else show(reply.next);
    await fetchFollowing();
  } catch (error) {
    warn(error.message);
  } finally {
    rest();
  }
}

async function ping() {
  if (busy) return;
  busy = true;
  try {
    const shown = current ? { id: current.id, version: current.version } : {};
    const reply = await call("state", shown);
    if (reply.behind) {
      drafts.delete(current.id);
      show(following ?? (await call("next", { have: have() })).next);
      following = null;
      warn("that window was taken by another page; here is the next one");
    } else if (!current && reply.progress.answered + reply.progress.skipped < reply.progress.total) {
      show((await call("next")).next);
    }
    await fetchFollowing();
  } catch (error) {
    warn(error.message);
  } finally {
    rest();
  }
}

// ---- showing ----------------------------------------------------------------------------------

function show(window) {
  const began = performance.now();
  current = window;
  byId("finished").hidden = window !== null;
  byId("period").textContent = window ? `window ${window.place} · ${window.period}` : "";
  document.querySelector(".answer").hidden = window === null;
  byAction("skip").disabled = window === null;
  if (!window) {
    byId("readout").textContent = "";
    delete document.documentElement.dataset.window;
    return;
  }
  const { start, end, by, ...rest } = opening(window);
  ({ choice, touched } = rest);
  chart.mark = { start, end, active: "end", suggested: !touched && start !== null, by };
  byId("comment").value = rest.comment;
  chart.show(window);
  showAnswer();
  showReadout();
  document.documentElement.dataset.window = window.id;
  document.documentElement.dataset.drawMs = (performance.now() - began).toFixed(2);
}

// What a window opens with: what was begun here, an answer taken back, or what is suggested.
function opening(window) {
  const begun = drafts.get(window.id);
  if (begun) return begun;
  const said = window.draft ?? window.suggestion ?? { label: null, start: null, end: null };
  const unclear = window.draft !== null && said.start !== null ? UNCLEAR : null;
  return {
    choice: said.label ?? unclear, start: said.start, end: said.end, comment: said.comment ?? "",
    touched: window.draft !== null, by: said.source ?? "suggested",
  };
}

function keepDraft() {
  const { start, end, by } = chart.mark;
  drafts.set(current.id, { choice, start, end, comment: byId("comment").value, touched, by });
}

function onMark() {
  if (!current) return;
  touched = true;
  if (choice === NONE) choice = null;
  tell("");
  showAnswer();
}

function choose(name) {
  if (!current) return;
  choice = name;
  touched = true;
  const { start, end, active } = chart.mark;
  chart.mark = name === NONE ? { start: null, end: null } : { start, end, active, suggested: false };
  chart.drawOverlay();
  tell("");
  showAnswer();
}

function showAnswer() {
  for (const button of byId("types").children) {
    const chosen = button.dataset.choice === choice;
    button.setAttribute("aria-checked", String(chosen));
    button.classList.toggle("suggested", chosen && !touched);
  }
  const { start, end } = chart.mark;
  const text = byId("span");
  text.replaceChildren();
  if (start === null) {
    text.textContent = choice === NONE ? "nothing expands here" : "drag over the expansion";
    return;
  }
  const before = chart.price("close", start - 1) ?? chart.price("open", start);
  const change = 100 * (chart.price("close", end) / before - 1);
  const bold = document.createElement("b");
  bold.textContent = `bars ${start} to ${end}`;
  const sign = change < 0 ? "−" : "+";
  text.append(bold, ` · ${end - start + 1} bars · ${sign}${Math.abs(change).toFixed(2)} %`);
}

function showReadout() {
  if (!current) return;
  const t = chart.cursor ?? chart.stop - 1;
  const parts = ["open", "high", "low", "close"].flatMap((name) => {
    const bold = document.createElement("b");
    bold.textContent = chart.priceText(chart.price(name, t));
    return [name[0].toUpperCase() + " ", bold];
  });
  byId("readout").replaceChildren(...parts);
}

function showProgress({ total, answered, skipped }) {
  const aside = skipped ? ` · ${grouped(skipped)} skipped` : "";
  byId("done").textContent = `${grouped(answered)} of ${grouped(total)}${aside}`;
  Object.assign(byId("bar"), { max: total, value: answered });
  const [title, text] = byId("finished").children;
  const open = total - answered - skipped;
  title.textContent = open ? "No window is free" : "That was the last window";
  text.textContent = open ? `${grouped(open)} more are on other pages of this review. Enter looks again.`
    : `${grouped(answered)} answers are in ${settings.file}${skipped ? `, ${grouped(skipped)} skipped` : ""}.`;
  byAction("reopen").hidden = !skipped;
}

function tell(text) {
  byId("status").textContent = text;
  byId("status").classList.remove("warning");
}

function warn(text) {
  tell(text);
  byId("status").classList.add("warning");
}

// ---- keys and buttons -------------------------------------------------------------------------

const typeKeys = () => types().map(([key, , text]) => `${key} ${text}`).join(", ");

function types() {
  const numbered = settings.classes.map((name, i) => [String(i + 1), name, name]);
  return [...numbered, ["x", UNCLEAR, "unclear"], ["0", NONE, "none"]];
}

function addTypes() {
  for (const [key, name, text] of types()) {
    const button = document.createElement("button");
    const cap = document.createElement("kbd");
    cap.textContent = key;
    button.append(cap, text);
    Object.assign(button, { type: "button", onclick: () => choose(name) });
    button.setAttribute("role", "radio");
    button.dataset.choice = name;
    byId("types").append(button);
    const row = byId("type-keys").insertRow();
    const head = document.createElement("th");
    head.append(cap.cloneNode(true));
    const meaning = {
      [UNCLEAR]: "an expansion, but what stands before it is not clear",
      [NONE]: "nothing expands (n as well)",
    };
    row.append(head);
    row.insertCell().textContent = meaning[name] ?? `${text} stands before it`;
  }
}

const actions = {
  accept, skip,
  undo: () => backTo("undo"),
  reopen: () => { if (!current) backTo("reopen"); },
  help: () => byId("help").showModal(),
  comment: () => byId("comment").focus(),
};
const keys = { Enter: "accept", " ": "accept", u: "undo", s: "skip", r: "reopen", c: "comment", "?": "help" };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (byId("help").open) {
    if (event.key === "?") byId("help").close();
    return;
  }
  if (event.target === byId("comment")) {
    if (event.key === "Enter" || event.key === "Escape") {
      event.preventDefault();
      byId("plot").focus();
    }
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const onButton = event.target instanceof HTMLButtonElement;
  if (onButton && (key === "Enter" || key === " ")) return; // it presses the button
  const type = key === "n" ? [key, NONE] : types().find(([own]) => own === key);
  if (type) choose(type[1]);
  else if (keys[key] && !event.repeat) actions[keys[key]]();
  else if (keys[key] || !current || !marking.key(key, event.shiftKey)) return;
  event.preventDefault();
}

async function start() {
  document.addEventListener("keydown", onKey);
  byId("comment").addEventListener("input", () => tell(""));
  document.querySelectorAll("[data-action]").forEach((button) => button.addEventListener("click", () => {
    actions[button.dataset.action]();
    if (button.dataset.action !== "help") byId("plot").focus(); // or Space would press it again
  }));
  addEventListener("pagehide", () => {
    navigator.sendBeacon("api/leave", new Blob([JSON.stringify({ page })], { type: "application/json" }));
  });
  try {
    settings = await (await fetch("settings.json")).json();
    byId("title").textContent = settings.store;
    document.title = `review ${settings.store}`;
    addTypes();
    show((await call("next")).next);
    await fetchFollowing();
    tell(`answers go to ${settings.file}`);
  } catch (error) {
    warn(error.message);
  }
  busy = false;
  byId("plot").focus();
  setInterval(ping, PING_MS);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ping(); });
  Object.assign(document.documentElement.dataset, { page, ready: "true" });
}

start();
