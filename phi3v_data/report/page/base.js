const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const num = n => n.toLocaleString("en-US");
const plural = (n, one, many) => `${num(n)} ${n === 1 ? one : many || one + "s"}`;

// All text goes through textContent: nothing from the data is ever parsed as HTML.
const el = (tag, attrs, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attrs || {})) {
    if (key === "text") node.textContent = value;
    else if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined && child !== ""));
  return node;
};
// Large counts at the top of a page: [value, noun in the plural, kind].
const drawTiles = tiles => {
  for (const [value, label, kind] of tiles)
    $("tiles").append(el("div", {class: `tile ${kind}`}, el("b", {text: num(value)}), el("span", {text: value === 1 ? label.slice(0, -1) : label})));
};
const pill = (text, kind) => el("span", {class: `pill ${kind || ""}`, text, title: text});

// ---- theme -------------------------------------------------------------------------------------------------------
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
const paint = () => { root.dataset.theme = chosen || (dark.matches ? "dark" : "light"); };
dark.addEventListener("change", paint);
$("theme").addEventListener("click", () => { chosen = root.dataset.theme === "dark" ? "light" : "dark"; paint(); });
paint();

$("name").textContent = data.name;
$("footer").textContent = data.footer;
