"use strict";
const MOST_SHOWN = 200000; // characters of an answer
const MOST_READ = 4000000; // bytes of an answer that is laid out
const form = document.querySelector("form");
const inputs = [...form.querySelectorAll("fieldset")].map((box) => ({
  name: box.dataset.name,
  json: "json" in box.dataset,
  box,
  file: box.querySelector("input[type=file]"),
  text: box.querySelector("textarea"),
  as: box.querySelector("select"),
  white: box.querySelector("input[type=number]"),
  picture: box.querySelector("img"),
}));
const button = form.querySelector("button");
const answer = document.getElementById("answer");
const took = document.getElementById("took");
const shown = document.getElementById("shown");
const command = document.getElementById("command");
let made = []; // addresses of blobs that the answer shows

function chosen(input) {
  return input.file && input.file.files.length ? input.file.files[0] : null;
}

function isJson(input) {
  return input.json || (input.as !== null && input.as.value === "json");
}

function address() {
  const query = new URLSearchParams(location.search);
  for (const input of inputs) {
    const file = chosen(input);
    if (input.white && file && file.type.startsWith("image/")) query.set("white", input.white.value);
  }
  const written = query.toString();
  return location.pathname + (written ? "?" + written : "");
}

function body() {
  const data = new FormData();
  for (const input of inputs) {
    const file = chosen(input);
    // A text goes as a file: a browser would change the ends of its lines.
    const kind = isJson(input) ? "application/json" : "text/plain;charset=utf-8";
    data.append(input.name, file || new Blob([input.text ? input.text.value : ""], { type: kind }));
  }
  return data;
}

function quoted(text) {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\\''") + "'";
}

function part(input) {
  const file = chosen(input);
  if (file || !input.text) {
    const name = file ? file.name : "FILE";
    return "-F " + quoted(input.name + "=@" + (/[;,"\\]/.test(name) ? '"' + name.replace(/["\\]/g, "\\$&") + '"' : name));
  }
  const text = input.text.value;
  if (input.as !== null && isJson(input)) return "-F " + quoted(input.name + '="' + text.replace(/["\\]/g, "\\$&") + '";type=application/json');
  return "--form-string " + quoted(input.name + "=" + text);
}

function showCommand() {
  command.textContent = ["curl", ...inputs.map(part), quoted(location.origin + address())].join(" ");
}

function showPicture(input) {
  const file = chosen(input);
  URL.revokeObjectURL(input.picture.src);
  input.picture.hidden = !(file && file.type.startsWith("image/"));
  if (!input.picture.hidden) input.picture.src = URL.createObjectURL(file);
}

function element(name, text, properties) {
  const found = Object.assign(document.createElement(name), properties);
  if (text !== undefined) found.textContent = text;
  return found;
}

// JSON with a line for each list of plain values.
function pretty(value, indent) {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const items = Array.isArray(value) ? value : Object.values(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const keys = Array.isArray(value) ? null : Object.keys(value);
  const inner = indent + "  ";
  const written = items.map((item, i) => (keys ? JSON.stringify(keys[i]) + ": " : "") + pretty(item, inner));
  if (items.every((item) => item === null || typeof item !== "object")) return open + written.join(", ") + close;
  return open + "\n" + inner + written.join(",\n" + inner) + "\n" + indent + close;
}

function isPlain(value) {
  return value === null || typeof value !== "object";
}

function isRow(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value) && Object.values(value).every(isPlain);
}

// The list in an answer that is best read as a table, if there is one.
function rowsOf(value) {
  const lists = Array.isArray(value) ? [value] : isPlain(value) ? [] : Object.values(value);
  return lists.find((list) => Array.isArray(list) && list.length && list.length <= 1000 && list.every(isRow));
}

// The five largest of many scores.
function largest(outputs) {
  const found = [];
  for (const [name, value] of Object.entries(outputs)) {
    const row = Array.isArray(value) && value.length === 1 && Array.isArray(value[0]) ? value[0] : null;
    if (!row || row.length < 6 || row.length > 100000 || !row.every((v) => typeof v === "number")) continue;
    const order = row.map((score, index) => ({ index, score })).sort((a, b) => b.score - a.score).slice(0, 5);
    found.push([name, order.map(({ index, score }) => ({ index, [name]: score }))]);
  }
  return found;
}

function table(rows, caption) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const found = element("table");
  if (caption) found.append(element("caption", caption));
  const head = found.createTHead().insertRow();
  for (const column of columns) head.append(element("th", column, { scope: "col" }));
  const shares = columns.filter((c) => c !== "index" && rows.every((row) => row[c] >= 0 && row[c] <= 1 && typeof row[c] === "number"));
  const lines = found.createTBody();
  for (const row of rows) {
    const line = lines.insertRow();
    for (const column of columns) {
      const value = row[column];
      const cell = line.insertCell();
      cell.textContent = value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
      if (shares.includes(column)) {
        cell.prepend(element("meter", undefined, { value, ariaLabel: column }), " ");
      }
    }
  }
  const box = element("div", undefined, { className: "scroll" });
  box.append(found);
  return box;
}

function download(blob) {
  const url = URL.createObjectURL(blob);
  made.push(url);
  return [url, element("a", "Download the answer", { href: url, download: "answer" })];
}

async function show(response, blob) {
  const kind = response.headers.get("content-type") || "";
  if (kind.startsWith("image/") || kind.startsWith("audio/")) {
    const [url, link] = download(blob);
    const seen = kind.startsWith("image/")
      ? element("img", undefined, { src: url, alt: "The model's answer" })
      : element("audio", undefined, { src: url, controls: true });
    shown.append(seen, link);
    return;
  }
  if (!kind.startsWith("application/json") && !kind.startsWith("text/")) {
    shown.append(element("p", blob.size + " bytes"), download(blob)[1]);
    return;
  }
  if (blob.size > MOST_READ) {
    const beginning = await blob.slice(0, MOST_SHOWN).text();
    shown.append(element("p", blob.size + " bytes"), download(blob)[1], element("pre", beginning + " …"));
    return;
  }
  let text = await blob.text();
  try {
    const value = JSON.parse(text);
    if (!response.ok && value && typeof value.error === "string") {
      shown.append(element("pre", value.error));
      return;
    }
    const rows = rowsOf(value);
    if (rows) shown.append(table(rows));
    if (value && typeof value.outputs === "object") {
      for (const [name, order] of largest(value.outputs)) shown.append(table(order, "The largest of " + name));
    }
    text = pretty(value, "");
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  shown.append(element("pre", text.length > MOST_SHOWN ? text.slice(0, MOST_SHOWN) + " …" : text));
  if (text.length > MOST_SHOWN) shown.append(download(blob)[1]);
}

async function ask(event) {
  event.preventDefault();
  button.disabled = true;
  made.forEach((url) => URL.revokeObjectURL(url));
  made = [];
  shown.replaceChildren();
  answer.hidden = false;
  answer.className = "";
  took.textContent = "…";
  const began = performance.now();
  try {
    const response = await fetch(address(), { method: "POST", body: body(), headers: { accept: "application/json" } });
    const blob = await response.blob();
    const milliseconds = (performance.now() - began).toFixed(1);
    took.textContent = response.status + " " + response.statusText + " in " + milliseconds + " ms";
    answer.className = response.ok ? "" : "failed";
    await show(response, blob);
  } catch (error) {
    answer.className = "failed";
    took.textContent = "";
    shown.append(element("pre", "The server did not answer: " + error.message));
  } finally {
    button.disabled = false;
  }
}

for (const input of inputs) {
  const changed = () => {
    if (input.file) showPicture(input);
    showCommand();
  };
  input.box.addEventListener("input", changed);
  if (!input.file) continue;
  input.box.addEventListener("dragover", (event) => {
    event.preventDefault();
    input.box.classList.add("over");
  });
  input.box.addEventListener("dragleave", () => input.box.classList.remove("over"));
  input.box.addEventListener("drop", (event) => {
    event.preventDefault();
    input.box.classList.remove("over");
    if (event.dataTransfer.files.length) {
      input.file.files = event.dataTransfer.files;
      changed();
    }
  });
  const clear = input.box.querySelector("button.plain");
  clear.addEventListener("click", () => {
    input.file.value = "";
    changed();
  });
}
form.addEventListener("submit", ask);
const copy = document.getElementById("copy");
copy.hidden = !navigator.clipboard;
copy.addEventListener("click", () => navigator.clipboard.writeText(command.textContent));
showCommand();
