"use strict";
const root = document.documentElement;
root.classList.add("scripted");

// Storage may be refused, as for files in some browsers.
function kept(value) {
  try {
    if (value !== undefined) localStorage.setItem("vmstream-theme", value);
    return localStorage.getItem("vmstream-theme");
  } catch {
    return null;
  }
}
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = kept();
if (theme === "dark" || theme === "light") root.dataset.theme = theme;

function themes(button) {
  const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const tell = () => { button.textContent = now() === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.dataset.theme = now() === "dark" ? "light" : "dark";
    kept(root.dataset.theme);
    tell();
  });
  dark.addEventListener("change", tell);
  tell();
}

// ---- what is under the pointer --------------------------------------------------------------

function tips() {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  // A browser shows a title of its own, and late.
  for (const title of document.querySelectorAll("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  document.addEventListener("mousemove", (event) => {
    const at = event.target;
    const words = at.dataset?.tip ?? (at.matches?.(".map img") ? cell(at, event) : null);
    tip.hidden = !words;
    if (!words) return;
    tip.textContent = words;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 16;
    const top = below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : below;
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  });
  document.addEventListener("mouseleave", () => { tip.hidden = true; });
}

const hex = (number) => `0x${number.toString(16)}`;
const pixels = new Map();

// The colours of a picture tell which class a cell is in, so they need not be sent twice.
function label(image, x, y) {
  if (!pixels.has(image)) {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    pixels.set(image, context);
  }
  const found = pixels.get(image).getImageData(x, y, 1, 1).data;
  let best = "", least = Infinity;
  for (const item of document.querySelectorAll(`.legend.${image.dataset.view} li`)) {
    const colour = item.dataset.colour.split(",").map(Number);
    const far = colour.reduce((sum, c, i) => sum + (c - found[i]) ** 2, 0);
    if (far < least) [best, least] = [item.dataset.label, far];
  }
  return best;
}

function cell(image, event) {
  const block = image.closest(".block").dataset;
  const box = image.getBoundingClientRect();
  const columns = image.naturalWidth, rows = image.naturalHeight;
  const x = Math.min(columns - 1, Math.floor((event.clientX - box.left) / box.width * columns));
  const y = Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows));
  const step = BigInt(block.step), begin = BigInt(Math.max(0, y * columns + Math.max(0, x))) * step;
  const used = BigInt(block.used);
  if (begin >= used) return null;
  const end = begin + step < used ? begin + step : used;
  const lines = [`${block.name}+${hex(begin)}, ${label(image, Math.max(0, x), Math.max(0, y))}`];
  for (const range of block.ranges.split(" ").filter(Boolean)) {
    const [gpa, length, offset] = range.split(":").map(BigInt);
    if (offset <= begin && begin < offset + length) {
      lines.push(`address ${hex(gpa + begin - offset)}..${hex(gpa + end - offset)}`);
    }
  }
  return lines.join("\n");
}

// ---- the tree -------------------------------------------------------------------------------

function search(box) {
  const input = box.querySelector("input"), told = box.querySelector("output");
  const tree = document.querySelector(".tree");
  const leaves = [...tree.querySelectorAll("li")].filter((li) => !li.querySelector("ul"));
  const words = leaves.map((li) => li.textContent.toLowerCase());
  const inner = [...tree.querySelectorAll("details")];
  // What a word finds: fields by name or value, and all that is in what is named so.
  const names = new Map(inner.map((d) => [d, d.querySelector("summary b, summary i").textContent.toLowerCase()]));
  let waiting = 0;

  function show() {
    const term = input.value.trim().toLowerCase();
    for (const li of tree.querySelectorAll("li")) li.hidden = Boolean(term);
    for (const details of inner) {
      details.querySelector("summary").classList.remove("hit");
      details.open = false;
    }
    for (const li of leaves) li.classList.remove("hit");
    told.textContent = "";
    if (!term) return;
    const devices = new Set();
    let count = 0;
    const reveal = (li) => {
      for (let at = li; at && at !== tree; at = at.parentElement) {
        if (at.tagName === "LI") at.hidden = false;
        if (at.tagName === "DETAILS" && at.parentElement !== li) at.open = true;
        if (at.parentElement === tree) devices.add(at);
      }
    };
    leaves.forEach((li, i) => {
      if (!words[i].includes(term)) return;
      count += 1;
      li.classList.add("hit");
      reveal(li);
    });
    for (const [details, name] of names) {
      if (!name.includes(term)) continue;
      count += 1;
      details.querySelector("summary").classList.add("hit");
      reveal(details.parentElement);
      for (const li of details.querySelectorAll("li")) li.hidden = false;
    }
    told.textContent = count ? `${count.toLocaleString("en")} found in ${devices.size} of ${tree.children.length} devices` : "nothing found";
  }
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 60);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== input) {
      event.preventDefault();
      input.focus();
    } else if (event.key === "Escape" && document.activeElement === input) {
      input.value = "";
      show();
    }
  });
}

document.addEventListener("DOMContentLoaded", () => {
  themes(document.querySelector(".theme"));
  tips();
  const box = document.querySelector(".search");
  if (box) search(box);
});
