"use strict";

const MAX_BYTES = 2 ** 20; // of an image, as the server has it
const SURE = 0.95; // characters below this are marked
const byId = (id) => document.getElementById(id);
const percent = (p) => {
  if (p > 0 && p < 0.0005) return "<0.1%";
  return (p >= 0.995 && p < 1 ? "99.9" : (100 * p).toFixed(p < 0.0995 ? 1 : 0)) + "%";
};
let refused = []; // images that wait for the API key

/** Send one image and show what it says; several are read one after the other. */
async function read(file, item = addItem(file)) {
  if (file.size > MAX_BYTES) {
    fail(item, `${file.name}: an image must have at most ${MAX_BYTES.toLocaleString("en")} bytes`);
    return;
  }
  const form = new FormData();
  form.append("file", file);
  const key = byId("key").value;
  const model = byId("model").value;
  const begin = performance.now();
  try {
    const response = await fetch("read" + (model ? "?model=" + encodeURIComponent(model) : ""), {
      method: "POST",
      body: form,
      headers: key ? { Authorization: "Bearer " + key } : {},
    });
    const answer = await response.json();
    if (response.status === 401) {
      refused.push([file, item]);
      byId("key-row").hidden = false;
      byId("key").focus();
    }
    if (response.ok) show(item, answer, performance.now() - begin);
    else fail(item, `${file.name}: ${answer.error}`);
  } catch {
    fail(item, `${file.name}: the server does not answer. Is it running?`);
  }
}

/** A new item of the list, with the image. */
function addItem(file) {
  const item = byId("result").content.firstElementChild.cloneNode(true);
  const image = item.querySelector("img");
  image.src = URL.createObjectURL(file);
  image.alt = file.name;
  item.querySelector(".details").textContent = "Reading…";
  byId("results").prepend(item);
  return item;
}

function show(item, answer, milliseconds) {
  const text = item.querySelector(".text");
  const characters = [...answer.text];
  text.replaceChildren(...characters.map((character, i) => {
    const box = document.createElement("span");
    const small = document.createElement("small");
    box.classList.toggle("unsure", answer.char_probs[i] < SURE);
    small.textContent = percent(answer.char_probs[i]);
    box.append(character, small);
    return box;
  }));
  const details = item.querySelector(".details");
  details.classList.remove("error");
  details.textContent =
    `Confidence ${percent(answer.confidence)}. Runner-up: ${answer.runner_up.text} ` +
    `(${percent(answer.runner_up.confidence)}). Read in ${Math.round(milliseconds)} ms.`;
  byId("status").textContent = `${characters.join(" ")}, confidence ${percent(answer.confidence)}`;
}

function fail(item, message) {
  const details = item.querySelector(".details");
  details.textContent = message;
  details.classList.add("error");
  byId("status").textContent = message;
}

async function readAll(files) {
  for (const file of files) await read(file);
}

byId("files").addEventListener("change", async (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // the same file can be chosen again
  await readAll(files);
});
document.addEventListener("paste", (event) => readAll([...event.clipboardData.files]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // or the browser would open the file
    byId("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") readAll([...event.dataTransfer.files]);
  });
}
byId("key-row").addEventListener("submit", async (event) => {
  event.preventDefault();
  const again = refused;
  refused = [];
  byId("key-row").hidden = true;
  for (const [file, item] of again) await read(file, item);
});
fetch("ready").then((response) => response.json()).then(({ models }) => {
  byId("model").append(...models.map((name) => new Option(name)));
  byId("model-row").hidden = models.length < 2;
});
