const RANK = {error: 0, warning: 1, info: 2};
const NOUN = {error: "error", warning: "warning", info: "note"};

// ---- overview ----------------------------------------------------------------------------------------------------
const counts = data.counts;
const errors = counts.error, warnings = counts.warning;
$("h-overview").textContent = data.ok ? (warnings ? "Valid, with warnings" : "Valid") : "Problems found";
$("verdict").classList.add(data.ok ? (warnings ? "warn" : "good") : "bad");
$("verdict-text").textContent = data.verdict;
drawTiles([
  [counts.samples, "samples", ""], [counts.turns, "turns", ""], [counts.images, "images", ""],
  [errors, "errors", errors ? "error" : ""], [warnings, "warnings", warnings ? "warning" : ""],
  [counts.info, "notes", ""],
]);

const drawBars = chart => {
  const top = Math.max(...chart.bars.map(bar => bar[1]), 1);
  const few = chart.bars.length <= 8;
  const plot = el("div", {class: few ? "plot few" : "plot", role: "img", "aria-label":
    `${chart.title}: ` + chart.bars.filter(bar => bar[1]).map(bar => `${bar[0]}: ${num(bar[1])}`).join("; ")});
  for (const [label, count] of chart.bars) {
    const bar = el("i");
    bar.style.height = count ? `${Math.max(2, 100 * count / top)}%` : "0";
    plot.append(el("div", {title: `${label} ${chart.unit}: ${num(count)}`}, bar));
  }
  if (few) return [plot, el("div", {class: "axis few"}, ...chart.bars.map(bar => el("span", {text: bar[0]}))),
    el("div", {class: "axis unit", text: chart.unit})];
  const ends = [chart.bars[0][0].split(" to ")[0], chart.bars[chart.bars.length - 1][0].split(" to ").pop()];
  const axis = el("div", {class: "axis"}, el("span", {text: ends[0]}), el("span", {text: chart.unit}), el("span", {text: ends[1]}));
  return [plot, axis];
};
const drawRows = chart => {
  const top = Math.max(...chart.bars.map(bar => bar[1]), 1);
  const rows = el("div", {class: "rows", tabindex: "0", role: "group", "aria-label": chart.title});
  for (const [label, count] of chart.bars) {
    const fill = el("i");
    fill.style.width = `${100 * count / top}%`;
    rows.append(el("span", {class: "k", text: label || "(none)", title: label}),
      el("span", {class: "track", "aria-hidden": "true"}, fill), el("span", {class: "v", text: num(count)}));
  }
  return [rows];
};
for (const chart of data.charts) {
  if (!chart.bars.length) continue;
  const facts = el("div", {class: "facts"});
  for (const [key, value] of chart.facts) facts.append(el("span", {}, `${key} `, el("b", {text: value})));
  $("charts").append(el("article", {class: "chart"}, el("h3", {text: chart.title}),
    chart.note ? el("p", {class: "note", text: chart.note}) : "",
    ...(chart.kind === "rows" ? drawRows : drawBars)(chart), chart.facts.length ? facts : ""));
}

// ---- problems ----------------------------------------------------------------------------------------------------
const PAGE = 25;
const total = data.problems.reduce((sum, problem) => sum + problem.count, 0);
$("nav-problems").textContent = num(total);
$("problems-lead").textContent = total
  ? `${plural(total, "finding")} of ${plural(data.problems.length, "kind")}. Open one to see what it means, how to fix it, and the rows in which it was found.`
  : "None. Every check that ran has passed.";
const finding = found => el("div", {class: "finding"},
  el("div", {class: "at"}, found.at, found.id ? `  ·  ${found.id}` : "", found.field ? `  ·  ${found.field}` : ""),
  el("div", {class: "msg", text: found.msg}),
  found.hint ? el("div", {class: "hint", text: found.hint}) : "",
  found.row >= 0 ? el("pre", {text: data.rows[found.row], tabindex: "0", "aria-label": "The row"}) : "",
  found.s >= 0 ? el("button", {class: "link", type: "button", text: "Show the sample", onclick: () => openSample(found.s, [found.s])}) : "");
for (const problem of data.problems) {
  const body = el("div", {class: "p-body"});
  const box = el("details", {class: "problem", "data-code": problem.code}, el("summary", {},
    pill(problem.severity, problem.severity), el("code", {text: problem.code}),
    el("span", {class: "what", text: problem.title}), el("span", {class: "num", text: num(problem.count)})), body);
  let filled = false;
  const fill = () => {
    if (filled) return;
    filled = true;
    if (problem.help.length) {
      const help = el("div", {class: "p-help"});
      for (const [head, text] of problem.help) help.append(el("p", {}, el("b", {text: `${head}: `}), text));
      body.append(help);
    }
    if (data.samples.some(sample => sample.problems.includes(problem.code)))
      body.append(el("button", {class: "ghost", type: "button", text: "Show these samples in the gallery",
        onclick: () => setFilters({problem: problem.code}, true)}));
    const list = el("div"), more = el("button", {class: "ghost", type: "button"});
    let shown = 0;
    const extend = () => {
      list.append(...problem.list.slice(shown, shown + PAGE).map(finding));
      shown = Math.min(shown + PAGE, problem.list.length);
      more.textContent = `Show more (${num(problem.list.length - shown)} left)`;
      more.hidden = shown >= problem.list.length;
    };
    more.addEventListener("click", extend);
    extend();
    body.append(list, el("p", {class: "more"}, more));
    if (problem.count > problem.list.length)
      body.append(el("p", {class: "lead", text: `${num(problem.count - problem.list.length)} more of this kind are counted but not listed here.`}));
  };
  box.addEventListener("toggle", () => box.open && fill());
  $("problem-list").append(box);
}

// ---- gallery -----------------------------------------------------------------------------------------------------
const samples = data.samples;
$("nav-gallery").textContent = num(samples.length);
$("gallery-lead").textContent = data.gallery_note;

// Text that the prompts of one source have in common is not searched: a list of classes in it would match every sample.
const SHARED = 0.1;
const common = (texts, at) => {
  let length = 0;
  while (texts.every(letters => at(letters, length) !== undefined && at(letters, length) === at(texts[0], length))) length++;
  return length;
};
const prompts = new Map();
for (const sample of samples) {
  if (!prompts.has(sample.source)) prompts.set(sample.source, {rows: 0, count: new Map(), shared: new Set(), head: "", tail: ""});
  const prompt = prompts.get(sample.source);
  prompt.rows++;
  for (const said of new Set([sample.system, ...sample.turns.map(turn => turn.u)])) prompt.count.set(said, (prompt.count.get(said) || 0) + 1);
}
for (const prompt of prompts.values()) {
  const different = [];
  for (const [said, n] of prompt.count) if (n > Math.max(2, SHARED * prompt.rows)) prompt.shared.add(said); else different.push(said);
  if (different.length < 3) continue;
  const head = different[0].slice(0, common(different, (said, n) => said[n]));
  prompt.head = head.slice(0, head.search(/\S*$/));
  const rest = different.map(said => said.slice(prompt.head.length));
  const tail = rest[0].slice(rest[0].length - common(rest, (said, n) => said[said.length - 1 - n]));
  prompt.tail = tail.slice(tail.match(/^\S*/)[0].length);
}
const asks = (prompt, said, word) => {
  if (prompt.shared.has(said)) return false;
  const letters = said.toLowerCase(), end = letters.length - prompt.tail.length;
  for (let at = letters.indexOf(word); at >= 0; at = letters.indexOf(word, at + 1))
    if (at < end && at + word.length > prompt.head.length) return true;
  return false;
};
const text = sample => sample.search || (sample.search = [sample.id, sample.at, sample.label, sample.turns.length ? "" : sample.raw,
  ...sample.answers, ...sample.turns.flatMap(turn => [turn.a, ...turn.i.map(index => data.images[index][0])])].join("\n").toLowerCase());
const says = (sample, word) => text(sample).includes(word)
  || [sample.system, ...sample.turns.map(turn => turn.u)].some(said => asks(prompts.get(sample.source), said, word));
const inPrompt = word => [...prompts.values()].some(prompt =>
  [...prompt.shared, prompt.head, prompt.tail].some(said => said.toLowerCase().includes(word.toLowerCase())));
const select = (node, options) => node.replaceChildren(...options.map(([value, label]) => el("option", {value, text: label})));
const tally = values => { const seen = new Map(); for (const v of values) seen.set(v, (seen.get(v) || 0) + 1); return seen; };
const named = seen => [...seen].sort((a, b) => a[0] < b[0] ? -1 : 1);
const byCode = tally(samples.flatMap(sample => sample.problems));
const clean = samples.filter(sample => !sample.problems.length).length;
select($("f-problem"), [["", `Any (${num(samples.length)})`], ["*", `With problems (${num(samples.length - clean)})`],
  ["-", `Without problems (${num(clean)})`], ...named(byCode).map(([code, n]) => [code, `${code} (${num(n)})`])]);
const bySplit = tally(samples.map(sample => sample.split));
select($("f-split"), [["", "All"], ...data.splits.filter(split => bySplit.has(split)).map(split => [split, `${split} (${num(bySplit.get(split))})`])]);
const byLabel = tally(samples.map(sample => sample.label));
if (byLabel.size > 1 || !byLabel.has("")) {
  select($("f-label"), [["", "All"], ...named(byLabel).map(([label, n]) => [`=${label}`, `${label || "(none)"} (${num(n)})`])]);
} else {
  select($("f-label"), [["", "Answers are free text"]]);
  $("f-label").disabled = true;
}

const hole = (reason, kind) => el("div", {class: `hole ${kind || ""}`, text: reason});
const image = index => {
  const [name, , , uri, reason] = data.images[index];
  return uri ? el("img", {src: uri, alt: name, loading: "lazy", decoding: "async", title: name}) : hole(reason || "no image");
};
const worst = sample => sample.problems.reduce((found, code) => RANK[data.severity[code]] < RANK[found] ? data.severity[code] : found, "info");
const card = (sample, position, list) => {
  const all = sample.turns.flatMap(turn => turn.i), count = all.length + sample.turns.reduce((n, turn) => n + turn.more, 0);
  const shown = all.slice(0, all.length > 4 ? 8 : all.length === 3 ? 3 : 4);
  const pics = el("div", {class: `pics ${shown.length > 4 ? "many" : shown.length === 4 ? "four" : shown.length === 1 ? "one" : ""}`});
  pics.append(...shown.map(image));
  if (!shown.length) pics.append(hole(sample.turns.length ? "no images" : "the row cannot be read", sample.turns.length ? "none" : ""));
  if (count > shown.length) pics.append(el("span", {class: "plus", text: `+${num(count - shown.length)}`}));
  const last = sample.turns[sample.turns.length - 1];
  const chips = el("div", {class: "chips"}, pill(sample.split), sample.turns.length > 1 ? pill(`${sample.turns.length} turns`) : "",
    ...sample.problems.map(code => pill(code, data.severity[code])));
  return el("button", {class: `sample ${sample.problems.length ? worst(sample) : ""}`, type: "button",
    "aria-label": `Sample ${sample.id}, split ${sample.split}`, onclick: () => openSample(list[position], list)},
    pics, el("div", {class: "text"}, last ? el("div", {class: "q", text: last.u}) : el("div", {class: "q", text: sample.raw}),
    last ? el("div", {class: "a", text: last.a || "(no answer)"}) : "", chips, el("div", {class: "id", text: sample.id || sample.at, title: sample.at})));
};

const STEP = 60;
let matching = [], drawn = 0;
const readFilters = () => ({problem: $("f-problem").value, split: $("f-split").value, label: $("f-label").value, text: $("f-text").value});
const fits = (sample, want) =>
  (!want.problem || (want.problem === "*" ? sample.problems.length > 0 : want.problem === "-" ? !sample.problems.length : sample.problems.includes(want.problem)))
  && (!want.split || sample.split === want.split)
  && (!want.label || `=${sample.label}` === want.label)
  && (!want.text || says(sample, want.text.toLowerCase()));
const drawMore = () => {
  const fresh = [];
  for (const end = Math.min(drawn + STEP, matching.length); drawn < end; drawn++) fresh.push(card(samples[matching[drawn]], drawn, matching));
  $("cards").append(...fresh);
  $("more").hidden = drawn >= matching.length;
  $("more").textContent = `Show more (${num(matching.length - drawn)} left)`;
};
const refresh = () => {
  const want = readFilters();
  matching = samples.map((_, index) => index).filter(index => fits(samples[index], want));
  drawn = 0;
  $("cards").replaceChildren();
  $("found").textContent = `${num(matching.length)} of ${plural(samples.length, "sample")} shown here`
    + (want.text && inPrompt(want.text) ? "; the prompt that samples share is not searched" : "");
  if (!matching.length) $("cards").append(el("p", {class: "empty", text: samples.length ? "No sample fits these filters." : "There is no sample to show."}));
  drawMore();
};
const remember = () => {
  const query = new URLSearchParams(Object.entries(readFilters()).filter(([, value]) => value)).toString();
  try { history.replaceState(null, "", query ? `#${query}` : "#gallery"); } catch { /* some viewers allow no history for files */ }
};
const setFilters = (want, scroll) => {
  for (const key of ["problem", "split", "label", "text"]) {
    const node = $(`f-${key}`);
    node.value = want[key] || "";
    if (node.value !== (want[key] || "")) node.value = "";
  }
  refresh();
  remember();
  if (scroll) { $("gallery").scrollIntoView({behavior: "instant"}); $("f-problem").focus({preventScroll: true}); }
};
for (const id of ["f-problem", "f-split", "f-label"]) $(id).addEventListener("change", () => { refresh(); remember(); });
let timer = 0;
$("f-text").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => { refresh(); remember(); }, 120); });
$("f-reset").addEventListener("click", () => setFilters({}));
$("filters").addEventListener("submit", event => event.preventDefault());
$("more").addEventListener("click", drawMore);

// ---- one sample --------------------------------------------------------------------------------------------------
const dialog = $("sample");
let order = [], at = 0;
const figure = index => {
  const [name, width, height] = data.images[index];
  const caption = width ? `${name} · ${width}×${height}` : name;
  return el("figure", {}, image(index), el("figcaption", {text: caption, title: caption}));
};
const said = turn => {
  const box = el("div", {class: "say"}), letters = [...turn.u];
  let from = 0;
  turn.o.forEach((offset, n) => {
    box.append(letters.slice(from, offset).join(""), el("span", {class: "tag", text: `image ${n + 1}`}));
    from = offset;
  });
  box.append(letters.slice(from).join(""));
  return box;
};
const drawSample = () => {
  const sample = samples[order[at]];
  $("d-title").textContent = sample.id || "(no id)";
  $("d-sub").textContent = [sample.at, `split ${sample.split}`, sample.source].filter(Boolean).join("  ·  ");
  $("d-prev").disabled = at === 0;
  $("d-next").disabled = at >= order.length - 1;
  const body = $("d-body");
  body.replaceChildren();
  if (sample.problems.length) body.append(el("div", {class: "chips"}, ...sample.problems.map(code => pill(code, data.severity[code]))));
  for (const found of sample.found) body.append(finding({...found, row: -1, s: -1}));
  if (sample.system) body.append(el("div", {class: "turn"}, el("div", {}, el("div", {class: "role", text: "system"}), el("div", {class: "say", text: sample.system}))));
  for (const turn of sample.turns) {
    const shots = el("div", {class: `shots ${turn.i.length === 1 ? "single" : ""}`}, ...turn.i.map(figure), turn.more ? hole(`${num(turn.more)} more`, "none") : "");
    body.append(el("div", {class: "turn"},
      el("div", {}, el("div", {class: "role", text: "user"}), turn.i.length ? shots : "", said(turn)),
      ...(turn.t || []).map(([kind, text]) => el("div", {}, el("div", {class: "role", text: kind}), el("div", {class: "say", text}))),
      el("div", {class: "assistant"}, el("div", {class: "role", text: turn.w === 0 ? "assistant (weight 0: context only)" : "assistant"}), el("div", {class: "say", text: turn.a || "(no answer)"}))));
  }
  const facts = el("dl");
  const fact = (key, value) => value && facts.append(el("dt", {text: key}), el("dd", {text: value}));
  fact("answers", sample.answers.join(" | "));
  fact("rejected", sample.rejected);
  fact("tools", sample.tools);
  fact("group", sample.group);
  for (const [key, value] of sample.meta) fact(key, value);
  if (facts.childElementCount) body.append(facts);
  if (sample.raw) body.append(el("pre", {text: sample.raw, tabindex: "0", "aria-label": "The row"}));
  body.scrollTop = 0;
};
const openSample = (index, list) => {
  order = list;
  at = list.indexOf(index);
  drawSample();
  if (!dialog.open) dialog.showModal();
  $("d-body").focus();
};
const go = step => { if (at + step >= 0 && at + step < order.length) { at += step; drawSample(); } };
$("d-prev").addEventListener("click", () => go(-1));
$("d-next").addEventListener("click", () => go(1));
$("d-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") go(-1);
  else if (event.key === "ArrowRight") go(1);
});

const fromHash = () => {
  const hash = location.hash.slice(1);
  if (!hash.includes("=")) return false;
  const query = new URLSearchParams(hash);
  setFilters(Object.fromEntries(query), true);
  const sample = query.get("sample");
  if (sample !== null && samples[+sample]) openSample(+sample, matching.includes(+sample) ? matching : [+sample]);
  return true;
};
addEventListener("hashchange", fromHash);
if (!fromHash()) refresh();
