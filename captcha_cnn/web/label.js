"use strict";
// The page of label.py. `items` are the images of this page in their order: those that were done, the one that
// is shown, and some that are fetched already, so that the next one is there without a wait.

const AHEAD = 2; // images that are fetched before they are needed
const HELD = 100; // of the last images: the label of one may still be on its way
const UNSURE = 0.95; // a character with a smaller probability is marked
const POLL_MILLISECONDS = 3000; // between two looks at the state
const items = [];
let at = 0; // of `items`: the image that is shown
let shown = null; // the file that is shown
let fetching = null; // the request for the next image
let gone = false; // whether label.py has not answered
let status = {};

const element = (id) => document.getElementById(id);

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return take(await answer.json());
}

function take(values) {
  if (values.error) throw new Error(values.error);
  showStatus(values.status);
  if (gone) element("error").hidden = true;
  gone = false;
  return values;
}

function showError(error) {
  gone = error instanceof TypeError; // what fetch() throws where nobody answers
  element("error").textContent = gone ? "label.py does not answer: start it again." : error.message;
  element("error").hidden = false;
}

// ------------------------------------------------------------------ images

function imageAddress(file) {
  return "/image?file=" + encodeURIComponent(file);
}

function ahead() {
  return items.slice(at).filter((item) => !item.done);
}

// Fetches until enough images wait; a request that runs already goes on.
function fillQueue() {
  fetching ??= fetchNext().finally(() => { fetching = null; });
  return fetching;
}

async function fetchNext() {
  while (ahead().length <= AHEAD) {
    // Not those that were passed over, which come again in the end.
    const held = items.filter((item, i) => item.done || i >= at).slice(-HELD).map((item) => item.file);
    const { item } = await post("/next", { held });
    if (!item) break;
    new Image().src = imageAddress(item.file); // the browser keeps it
    items.push({ ...item, text: item.label ?? item.guess, done: false });
    show();
  }
}

function show() {
  const item = items[at];
  element("form").hidden = !item;
  element("empty").hidden = Boolean(item) || !status.folder;
  if (!item || shown === item.file) return;
  shown = item.file;
  element("image").src = imageAddress(item.file);
  element("image").alt = "The image to be labelled, " + item.file;
  element("name").textContent = item.file + labelNote(item);
  const unsure = showGuess(item);
  const text = element("text");
  text.value = item.text;
  element("take").hidden = !status.review || !item.guess;
  element("back").disabled = at === 0;
  text.focus({ preventScroll: true });
  // What is probably wrong is selected, so that typing replaces it.
  if (unsure.length === 1 && text.value === item.guess) text.setSelectionRange(unsure[0], unsure[0] + 1);
  else text.select();
}

function labelNote(item) {
  if (item.label === "") return " · marked as unreadable";
  return item.label ? " · labelled " + item.label : "";
}

// Shows the guess with its unsure characters marked, or in a review those that the label has not; returns
// their places.
function showGuess(item) {
  const unsure = [];
  const parts = [status.review ? "read as " : ""];
  const label = [...(item.label ?? "")];
  let place = 0; // in the text, in units of JavaScript
  [...item.guess].forEach((character, i) => {
    if (status.review ? character !== label[i] : item.char_probs[i] < UNSURE) {
      const mark = document.createElement("mark");
      mark.textContent = character;
      mark.title = Math.round(100 * item.char_probs[i]) + "% sure";
      parts.push(mark);
      unsure.push(place);
    } else parts.push(character);
    place += character.length;
  });
  element("guess").replaceChildren(...parts);
  const marked = unsure.map((i) => item.guess[i]).join(", ");
  element("unsure").textContent = (status.review ? "Read as " : "Guess ") + item.guess +
    (!marked ? "" : status.review ? ", other than the label in " + marked : ", unsure of " + marked);
  return unsure;
}

// ------------------------------------------------------------------ what a person does

function go(step) {
  if (at + step < 0 || at >= items.length && step > 0) return;
  if (items[at]) items[at].text = element("text").value;
  at += step;
  element("error").hidden = true;
  show();
  fillQueue().then(show, showError);
}

function confirm(label) {
  const item = items[at];
  if (!item) return;
  const place = at;
  const before = { label: item.label, done: item.done };
  Object.assign(item, { text: label, label, done: true });
  element("text").value = label;
  go(1);
  post("/label", { file: item.file, label }).catch((error) => {
    Object.assign(item, before, { text: label || item.guess }); // it is not written: it is shown again
    at = place;
    shown = null;
    show();
    showError(error);
  });
}

function confirmText(text) {
  const label = text.trim();
  if (label) confirm(label);
  else showError(new Error("Type the text, or mark the image as unreadable with Escape."));
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  confirmText(element("text").value);
});
element("unreadable").addEventListener("click", () => confirm(""));
element("back").addEventListener("click", () => go(-1));
element("forward").addEventListener("click", () => go(1));
element("take").addEventListener("click", () => items[at] && confirmText(items[at].guess));
document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.altKey || event.metaKey) return;
  const actions = { Escape: () => confirm(""), ArrowUp: () => go(-1), ArrowDown: () => go(1) };
  if (event.ctrlKey && event.key === "Enter" && status.review) actions.Enter = () => confirmText(items[at].guess);
  else if (event.ctrlKey) return;
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
});

// ------------------------------------------------------------------ the state

function count(number, word) {
  return number.toLocaleString("en") + " " + word + (number === 1 ? "" : "s");
}

function showStatus(found) {
  status = found;
  const done = found.labelled + found.unreadable;
  const review = found.review;
  document.title = (review ? "Review " : "Label ") + found.folder;
  element("folder").textContent = (review ? "Labels to review in " : "Label ") + found.folder;
  element("progress").textContent = review
    ? "The model reads another text in these images, the surest first. " + count(found.to_review, "image") + " in all."
    : done.toLocaleString("en") + " of " + count(found.images, "image") + " done";
  element("bar").max = found.images || 1;
  element("bar").value = done;
  element("labelled").textContent = found.labelled.toLocaleString("en") +
    (found.unreadable ? ", " + found.unreadable.toLocaleString("en") + " unreadable" : "");
  element("pace").textContent = found.seconds === null ? "–" : found.seconds + " s a label";
  element("accuracy").textContent = found.accuracy ?? "–";
  element("model").textContent = found.model_labels ? "trained on " + count(found.model_labels, "label") : "the starting weights";
  element("training").textContent = trainingText(found);
  element("empty").textContent = review ? "No other label looks wrong." : "No image is left to label.";
  element("reached").hidden = !found.reached;
  element("reached").textContent = "The target of " + 100 * found.until + "% is reached. Train on all labels: " + found.next_command;
}

function trainingText(found) {
  if (found.training) {
    const minutes = Math.floor(found.training_seconds / 60);
    const seconds = String(found.training_seconds % 60).padStart(2, "0");
    return "Training on " + count(found.training, "label") + " in the background, for " + minutes + ":" + seconds + ".";
  }
  if (found.training_failed) return "The last training failed, and the guesses stay as they were: " + found.training_failed;
  return found.next_training ? "The next training begins at " + count(found.next_training, "label") + "." : "";
}

setInterval(async () => {
  if (document.hidden) return;
  try {
    take(await (await fetch("/state")).json());
    if (items[at] === undefined) await fillQueue();
  } catch (error) {
    showError(error);
  }
}, POLL_MILLISECONDS);

(async () => {
  try {
    const { items: recent } = await post("/start", {});
    items.push(...recent.map((item) => ({ ...item, text: item.label || item.guess, done: true })));
    at = items.length;
    await fillQueue();
    show();
  } catch (error) {
    showError(error);
  }
})();
