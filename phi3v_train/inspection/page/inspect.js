$("h-overview").textContent = data.headline;
$("verdict-text").textContent = data.verdict;
if (!data.ok) $("verdict").classList.add("bad");
drawTiles(data.tiles.map(([value, label]) => [value, label, ""]));
$("nav-rows").textContent = num(data.rows.length);

const figure = (row, span) => {
  const image = row.images[span.image];
  return el("figure", {class: "shot"},
    image.uri ? el("img", {src: image.uri, alt: image.path, loading: "lazy", decoding: "async"}) : el("div", {class: "hole", text: image.reason || "no image"}),
    el("figcaption", {title: `tokens from ${num(span.start)} on; ${image.tag} in the text of the template`},
      el("b", {text: span.words}), el("span", {text: `${image.path}, ${image.about}`})));
};
const tokens = span => {
  const markers = new Set(span.markers);
  return el("span", {class: span.kind}, ...span.texts.map((text, n) =>
    el("span", {class: markers.has(n) ? "t m" : "t", text, title: `token ${num(span.start + n)}, id ${span.ids[n]}, ${span.kind}`})));
};
const bar = row => {
  const parts = el("div", {class: "parts", "aria-hidden": "true"});
  for (const [kind, count] of [["image", row.image], ["context", row.tokens - row.image - row.trained], ["trained", row.trained]]) {
    if (!count) continue;
    const part = el("i", {class: kind, title: `${plural(count, "token")}: ${kind}`});
    part.style.flex = String(count);
    parts.append(part);
  }
  return parts;
};
const lengths = row => row.tokens
  ? `${plural(row.tokens, "token")}: ${num(row.image)} image, ${num(row.tokens - row.image)} text, ${num(row.trained)} trained`
  : "cannot be encoded";
const boxes = data.rows.map((row, index) => {
  const body = el("div", {class: "p-body"});
  const box = el("details", {class: row.wrong ? "problem wrong" : "problem", "data-row": row.row}, el("summary", {},
    row.wrong ? pill("trains nothing", "error") : row.trained ? pill(`${num(row.trained)} trained`, "good") : pill("to be predicted"),
    el("div", {class: "who"}, el("code", {text: row.id || "(no id)", title: row.id}),
      el("span", {text: `${row.at}, row ${num(row.row)}` + (row.tokens ? ` · ${plural(row.turns, "turn")}, ${plural(row.images.length, "image")}` : "")})),
    el("div", {class: "lengths"}, bar(row), el("span", {text: lengths(row)}))), body);
  let filled = false;
  box.addEventListener("toggle", () => {
    if (!box.open || filled) return;
    filled = true;
    body.append(...row.notes.map(text => el("p", {class: "remark", text})));
    if (row.spans.length) body.append(el("div", {class: "flow"}, ...row.spans.map(span => span.kind === "image" ? figure(row, span) : tokens(span))));
    if (row.template) body.append(el("details", {}, el("summary", {text: "Text of the chat template"}), el("pre", {text: row.template, tabindex: "0", "aria-label": "Text of the chat template"})));
  });
  if (index < 3 || row.wrong) box.open = true;
  return box;
});
$("row-list").append(...boxes);
$("open-all").addEventListener("click", () => boxes.forEach(box => { box.open = true; }));
$("close-all").addEventListener("click", () => boxes.forEach(box => { box.open = false; }));
