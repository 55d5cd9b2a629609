"use strict";
/* Charts of a study's page, drawn as SVG from the columns in #data. Lines and dots of one colour are
   one path, so a thousand trials are a few dozen elements. A trial is known by its place i. */
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
if (!D) return;
for (const name of ["number", "score", "axes", "curves", "importance", "n_epochs", "epoch"]) D[name] ||= [];
D.state ||= "";
const N = D.number.length, IS_UP = D.direction === "maximize", CLASSES = 5;
const $ = (id) => document.getElementById(id);
const range = (n) => Array.from({ length: n }, (_, i) => i);
const clamp = (t) => Math.min(1, Math.max(0, t));

function add(parent, tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}
function fmt(v) {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v);
  if (v !== 0 && (size < 1e-3 || size >= 1e6)) return v.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(v.toPrecision(4)));
}
const cut = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);

/* A scale maps values to 0..1; what lies beyond is drawn at the edge. */
function scaleOf(low, high, isLog) {
  if (!(high > low)) { const pad = Math.abs(low) * 0.05 || 0.5; low -= pad; high += pad; isLog = isLog && low > 0; }
  const f = isLog ? Math.log10 : (v) => v, a = f(low), b = f(high);
  return { low, high, isLog, t: (v) => clamp((f(v > 0 || !isLog ? v : low) - a) / (b - a)), ticks: (n) => ticksOf(low, high, isLog, n) };
}
function ticksOf(low, high, isLog, n) {
  if (isLog && high / low >= 8) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    let found = range(Math.max(0, last - first + 1)).map((i) => 10 ** (first + i));
    if (found.length < 2) found = [first - 1, first].flatMap((e) => [1, 2, 5].map((m) => m * 10 ** e));
    const step = Math.ceil(found.length / n);
    return found.filter((v, i) => i % step === 0 && v >= low * 0.999 && v <= high * 1.001);
  }
  const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return range(Math.max(0, last - first + 1)).map((i) => (first + i) * step);
}
/* From the best value to the worst, but no further than four times as far as the better half. */
function robust(values, always) {
  const sorted = values.filter((v) => v !== null).sort((a, b) => (IS_UP ? b - a : a - b));
  if (!sorted.length) return scaleOf(0, 1, false);
  const best = sorted[0];
  let worst = sorted[sorted.length - 1];
  const far = 4 * (sorted[Math.floor((sorted.length - 1) / 2)] - best);
  if (far !== 0 && Math.abs(worst - best) > Math.abs(far)) worst = best + far;
  let low = Math.min(best, worst), high = Math.max(best, worst);
  for (const v of always) if (v !== null && v > low - (high - low) && v < high + (high - low)) { low = Math.min(low, v); high = Math.max(high, v); }
  return scaleOf(low, high, low > 0 && high / low > 50);
}

const scored = range(N).filter((i) => D.score[i] !== null && D.state[i] !== "F");
const byRank = [...scored].sort((a, b) => (IS_UP ? D.score[b] - D.score[a] : D.score[a] - D.score[b]) || a - b);
const group = new Array(N).fill("fail");
byRank.forEach((i, rank) => { group[i] = D.state[i] === "P" ? "pruned" : "s" + (CLASSES - 1 - Math.floor((CLASSES * rank) / byRank.length)); });
const best = D.number.indexOf(D.best);
const scoreScale = robust(scored.map((i) => D.score[i]), [D.baseline]);
const axes = D.axes.map((axis) => {
  const scale = axis.choices ? scaleOf(0, Math.max(1, axis.choices.length - 1), false) : scaleOf(axis.low, axis.high, axis.log);
  const show = axis.choices ? (v) => axis.choices[v] : fmt, isWhole = axis.values.every((v) => v === null || Number.isInteger(v));
  const ticks = (n) => (axis.choices ? range(axis.choices.length).filter((c) => c % Math.ceil(axis.choices.length / 12) === 0) : scale.ticks(n).filter((v) => !isWhole || Number.isInteger(v)));
  const n = axis.choices ? axis.choices.length : isWhole && axis.high - axis.low < 9 ? axis.high - axis.low + 1 : 0;
  return { name: axis.name, values: axis.values, scale, show, ticks, isChoice: Boolean(axis.choices), n };
});
const scoreAxis = { name: D.metric, values: D.score, scale: scoreScale, show: fmt, ticks: (n) => scoreScale.ticks(n), isChoice: false };

/* What is chosen on the page: ranges of axes, or a list of trials. */
const ranges = new Map();
let onlyThese = null;
const isOn = new Array(N).fill(true);
const ABSENT = -0.1;
const at = (axis, i) => (axis.values[i] === null ? ABSENT : axis.scale.t(axis.values[i]));
function choose() {
  for (let i = 0; i < N; i++) {
    isOn[i] = onlyThese === null || onlyThese.has(i);
    for (const [axis, [a, b]] of ranges) { const t = at(axis, i); if (t < a - 1e-9 || t > b + 1e-9) isOn[i] = false; }
  }
  const on = range(N).filter((i) => isOn[i]), top = byRank.find((i) => isOn[i] && D.state[i] === "C");
  const all = on.length === N;
  $("chosen").textContent = all ? `${N} trial${N === 1 ? "" : "s"}` : `${on.length} of ${N} trials chosen`
    + (top === undefined ? "; none of them completed" : `; their best ${D.metric} is ${fmt(D.score[top])} (trial ${D.number[top]})`);
  $("choose-all").hidden = all;
  charts.forEach((chart) => chart.paint());
  paintTable();
}

/* Charts: each has `line(i)`, the path of a trial, and `near(x, y)`, the trial at a place. */
const charts = [];
const KINDS = ["off", "fail", "pruned", "s0", "s1", "s2", "s3", "s4", "best", "hot"];
function layers(svg, style, line) {
  const g = add(svg, "g", { class: style }), paths = {};
  for (const kind of KINDS) paths[kind] = add(g, "path", { class: kind });
  const chart = {
    paint() {
      const parts = {};
      for (let i = 0; i < N; i++) (parts[isOn[i] ? group[i] : "off"] ||= []).push(line(i));
      for (const kind of KINDS) if (kind !== "hot" && kind !== "best") paths[kind].setAttribute("d", (parts[kind] || []).join(""));
      paths.best.setAttribute("d", best >= 0 && isOn[best] ? line(best) : "");
    },
    heat(i) { paths.hot.setAttribute("d", i === null ? "" : line(i)); },
  };
  charts.push(chart);
  return chart;
}
let hot = null;
function heat(i, event) {
  const tip = $("tip");
  if (i !== hot) {
    hot = i;
    charts.forEach((chart) => chart.heat(i));
    document.querySelectorAll("#g-trials tr.is-hot").forEach((row) => row.classList.remove("is-hot"));
    if (i !== null) {
      const row = document.querySelector(`#g-trials tr[data-n="${D.number[i]}"]`);
      if (row) row.classList.add("is-hot");
      tip.textContent = "";
      const words = { C: "", P: ", pruned", F: ", failed", R: ", unfinished" }[D.state[i]];
      const head = document.createElement("b");
      head.textContent = `trial ${D.number[i]}${words}: ${fmt(D.score[i])}`;
      tip.append(head, document.createElement("br"));
      const shown = axes.filter((axis) => axis.values[i] !== null).slice(0, 12).map((axis) => `${axis.name} ${cut(String(axis.show(axis.values[i])), 30)}`);
      tip.append(shown.join(", ") + (D.epoch[i] ? `; best epoch ${D.epoch[i]} of ${D.n_epochs[i]}` : ""));
    }
  }
  tip.hidden = i === null;
  if (i !== null) {
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(4, event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16) + "px";
  }
}
function listen(svg, near) {
  svg.addEventListener("pointermove", (event) => {
    if (event.buttons) return;
    const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    heat(near(((event.clientX - box.left) * view.width) / box.width, ((event.clientY - box.top) * view.height) / box.height), event);
  });
  svg.addEventListener("pointerleave", (event) => heat(null, event));
}
function nearest(points, x, y, reach) {
  let found = null, least = reach * reach;
  for (const [px, py, i] of points) {
    if (!isOn[i]) continue;
    const d = (px - x) ** 2 + (py - y) ** 2;
    if (d < least) { least = d; found = i; }
  }
  return found;
}
function canvas(key, width, height, extra) {
  const plot = document.querySelector(`#c-${key} .plot`);
  if (!plot) return null;
  plot.querySelectorAll("svg, .more-axes, .legend").forEach((old) => old.remove());
  const svg = add(null, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: extra === "group" ? "group" : "img", "aria-label": plot.dataset.label });
  plot.append(svg);
  return svg;
}
const widthOf = (key) => { const plot = document.querySelector(`#c-${key} .plot`); return plot ? Math.max(260, Math.floor(plot.clientWidth)) : 0; };
function legend(key, parts) {
  const line = document.createElement("div");
  line.className = "legend";
  for (const [style, words] of parts) {
    const item = document.createElement("span"), mark = document.createElement("i");
    mark.className = style === "ramp" ? "ramp" : "key";
    if (style !== "ramp") mark.style.background = `var(--${style})`;
    if (style === "ramp") item.append("worst fifth", mark, "best fifth"); else if (style) item.append(mark, words); else item.append(words);
    line.append(item);
  }
  document.querySelector(`#c-${key} .plot`).append(line);
}
const ends = [...(D.state.includes("P") ? [["pruned", "pruned"]] : []), ...(D.state.includes("F") ? [["bad", "failed"]] : [])];
const marks = () => [["ramp", ""], ["hot", "best trial"], ...ends];
const beyond = scored.filter((i) => D.score[i] < scoreScale.low || D.score[i] > scoreScale.high).length;
const edge = beyond ? [["", `${beyond} beyond the scale, at its edge`]] : [];

/* Parallel coordinates: axes stand upright, or lie one below the other on a narrow screen. */
let showsAllAxes = false;
function drawParallel() {
  const width = widthOf("parallel");
  if (!width) return;
  const isAcross = width < 560, fit = isAcross ? 8 : Math.max(3, Math.floor(width / 92) - 1);
  const shown = showsAllAxes ? axes : axes.slice(0, fit), all = [...shown, scoreAxis], n = all.length;
  const left = isAcross ? 14 : 34, right = isAcross ? 14 : 64, top = 30, gap = 58;
  const w = isAcross ? width : Math.max(width, left + right + (n - 1) * 72), h = isAcross ? top + gap * n - 24 : 330;
  const span = isAcross ? w - left - right - 26 : h - top - 46;
  const svg = canvas("parallel", w, h, "group");
  if (isAcross) svg.classList.add("across");
  const place = (k, t) => isAcross ? [left + 26 + t * span, top + k * gap]
    : [left + (k * (w - left - right)) / (n - 1), top + (1 - t) * span];
  const line = (i) => all.map((axis, k) => { const [x, y] = place(k, D.state[i] === "F" && axis === scoreAxis ? ABSENT : at(axis, i)); return `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`; }).join("");
  layers(svg, "thin", line);
  all.forEach((axis, k) => drawAxis(svg, axis, (t) => place(k, t), isAcross, k));
  listen(svg, (x, y) => {
    let found = null, least = 7;
    for (let i = 0; i < N; i++) {
      if (!isOn[i]) continue;
      for (let k = 0; k + 1 < n; k++) {
        const [ax, ay] = place(k, at(all[k], i)), [bx, by] = place(k + 1, at(all[k + 1], i));
        const share = isAcross ? (y - ay) / (by - ay) : (x - ax) / (bx - ax);
        if (share < 0 || share > 1) continue;
        const d = isAcross ? Math.abs(ax + share * (bx - ax) - x) : Math.abs(ay + share * (by - ay) - y);
        if (d < least) { least = d; found = i; }
      }
    }
    return found;
  });
  if (axes.length > fit) moreButton("parallel", showsAllAxes ? "Show fewer parameters" : `Show all ${axes.length} parameters`, () => { showsAllAxes = !showsAllAxes; drawAll(); });
  legend("parallel", marks());
}
function moreButton(key, words, act) {
  const button = document.createElement("button");
  button.type = "button"; button.className = "more-axes"; button.textContent = words;
  button.addEventListener("click", act);
  document.querySelector(`#c-${key} .plot`).append(button);
}
const below = (x, y, x0, x1) => ({ class: "halo", x: x > x1 - 20 ? x + 8 : x, y: y + 14, "text-anchor": x > x1 - 20 ? "end" : "middle" });
function drawAxis(svg, axis, place, isAcross, k) {
  const [x0, y0] = place(0), [x1, y1] = place(1), g = add(svg, "g", {});
  add(g, "line", { class: "axis", x1: x0, y1: y0, x2: x1, y2: y1 });
  const name = add(g, "text", { class: "name halo", x: isAcross ? x0 - 26 : x0, y: isAcross ? y0 - 10 : 14, "text-anchor": isAcross || k === 0 ? "start" : "middle" }, cut(axis.name, isAcross ? 34 : 15));
  if (k === 0 && !isAcross) name.setAttribute("x", Math.max(2, x0 - Math.min(15, axis.name.length) * 3.4));
  add(name, "title", {}, axis.name);
  const hasAbsent = axis.values.some((v) => v === null);
  for (const tick of axis.ticks(isAcross ? 4 : 6)) {
    const [x, y] = place(axis.scale.t(tick)), label = String(axis.show(tick));
    if (isAcross && hasAbsent && x < x0 + 30) continue;
    const text = add(g, "text", isAcross ? below(x, y, x0, x1) : { class: "halo", x: x + 6, y: y + 3.5 }, cut(label, isAcross ? 8 : 11));
    add(text, "title", {}, label);
  }
  if (hasAbsent) {
    const [x, y] = place(ABSENT);
    add(g, "text", isAcross ? { class: "halo", x: x - 10, y: y + 14 } : { class: "halo", x: x + 6, y: y + 3.5 }, axis === scoreAxis ? "no score" : "none");
  }
  brush(g, axis, place, isAcross);
}
function brush(g, axis, place, isAcross) {
  const [ax, ay] = place(ABSENT - 0.03), [bx, by] = place(1.03), half = 13;
  const box = isAcross ? { x: ax, y: ay - half, width: bx - ax, height: 2 * half } : { x: ax - half, y: by, width: 2 * half, height: ay - by };
  const band = add(g, "rect", { class: "band", visibility: "hidden" });
  const hit = add(g, "rect", { class: "hit", ...box, tabindex: 0, role: "slider", "aria-label": `choose trials by ${axis.name}: arrow keys move a range, Escape lets go`,
    "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0, "aria-valuetext": "all", "data-axis": axis.name });
  const show = () => {
    const kept = ranges.get(axis);
    band.setAttribute("visibility", kept ? "visible" : "hidden");
    hit.setAttribute("aria-valuetext", kept ? `${Math.round(100 * kept[0])} to ${Math.round(100 * kept[1])} % of the axis` : "all");
    if (!kept) return;
    hit.setAttribute("aria-valuenow", Math.round(100 * clamp(kept[0])));
    const [px, py] = place(kept[0]), [qx, qy] = place(kept[1]);
    const area = isAcross ? { x: px - 1, y: py - 7, width: qx - px + 2, height: 14 } : { x: px - 7, y: qy - 1, width: 14, height: py - qy + 2 };
    for (const name in area) band.setAttribute(name, area[name]);
  };
  const set = (kept) => { if (kept) ranges.set(axis, kept); else ranges.delete(axis); show(); choose(); };
  const where = (event) => {
    const svg = g.ownerSVGElement, view = svg.viewBox.baseVal, b = svg.getBoundingClientRect();
    const p = isAcross ? ((event.clientX - b.left) * view.width) / b.width : ((event.clientY - b.top) * view.height) / b.height;
    const a = isAcross ? place(0)[0] : place(0)[1], z = isAcross ? place(1)[0] : place(1)[1];
    return Math.min(1.03, Math.max(ABSENT - 0.03, (p - a) / (z - a)));
  };
  let start = null;
  hit.addEventListener("pointerdown", (event) => { start = where(event); hit.setPointerCapture(event.pointerId); heat(null, event); event.preventDefault(); hit.focus({ preventScroll: true }); });
  hit.addEventListener("pointermove", (event) => { if (start === null) return; const now = where(event); if (Math.abs(now - start) > 0.015) set([Math.min(start, now), Math.max(start, now)]); });
  hit.addEventListener("pointerup", (event) => { if (start !== null && Math.abs(where(event) - start) <= 0.015) set(null); start = null; });
  hit.addEventListener("pointercancel", () => { start = null; });
  hit.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowLeft: -0.1 }[event.key];
    if (event.key === "Escape") set(null);
    if (!step) return;
    event.preventDefault();
    const [a] = ranges.get(axis) || [step > 0 ? -0.1 : 0.9], low = Math.min(0.8, Math.max(0, a + step));
    set([low, low + 0.2]);
  });
  show();
}

/* Frame of a chart with two scales; gives the functions from values to places. */
function frame(svg, box, x, y, labels) {
  const px = (v) => box.left + x.t(v) * (box.w - box.left - box.right), py = (v) => box.top + (1 - y.t(v)) * (box.h - box.top - box.bottom);
  const g = add(svg, "g", {});
  for (const v of y.ticks(box.h > 180 ? 5 : 3)) {
    add(g, "line", { class: "grid", x1: box.left, x2: box.w - box.right, y1: py(v), y2: py(v) });
    if (!box.isBare) add(g, "text", { x: box.left - 6, y: py(v) + 3.5, "text-anchor": "end" }, fmt(v));
  }
  for (const v of labels || []) add(g, "text", { x: px(v.at), y: box.h - box.bottom + 15, "text-anchor": v.anchor || "middle" }, v.text);
  return { px, py };
}
const tickLabels = (scale, n, isWhole) => scale.ticks(n).filter((v) => !isWhole || Number.isInteger(v)).map((v) => ({ at: v, text: fmt(v) }));
const dot = (x, y) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`;

function drawHistory() {
  const width = widthOf("history");
  if (!width) return;
  const box = { w: width, h: 250, left: 48, right: 14, top: 12, bottom: 40 }, svg = canvas("history", box.w, box.h);
  const x = scaleOf(D.number[0], D.number[N - 1], false), { px, py } = frame(svg, box, x, scoreScale, tickLabels(x, Math.min(8, width / 80), true));
  add(svg, "text", { x: box.w - box.right, y: box.h - 6, "text-anchor": "end" }, "trial");
  if (D.baseline !== null) {
    add(svg, "path", { class: "ref", d: `M${box.left} ${py(D.baseline)}H${box.w - box.right}` });
    add(svg, "text", { class: "halo", x: box.w - box.right, y: py(D.baseline) - 5, "text-anchor": "end" }, "baseline " + fmt(D.baseline));
  }
  let record = null, path = "";
  for (let i = 0; i < N; i++) {
    const v = D.score[i];
    if (v === null || D.state[i] !== "C" || (record !== null && !(IS_UP ? v > record : v < record))) continue;
    record = v;
    path += path ? `H${px(D.number[i])}V${py(v)}` : `M${px(D.number[i])} ${py(v)}`;
  }
  add(svg, "path", { class: "sofar", d: path ? path + `H${box.w - box.right}` : "" });
  const points = scored.map((i) => [px(D.number[i]), py(D.score[i]), i]);
  const where = new Map(points.map((p) => [p[2], p]));
  layers(svg, "dots", (i) => (where.has(i) ? dot(where.get(i)[0], where.get(i)[1]) : ""));
  const low = box.h - box.bottom;
  const failed = range(N).filter((i) => D.state[i] === "F").map((i) => [px(D.number[i]), low - 4, i]);
  add(svg, "path", { class: "cross", d: failed.map(([a, b]) => `M${a - 3} ${b - 3}l6 6m0 -6l-6 6`).join("") });
  listen(svg, (a, b) => nearest([...points, ...failed], a, b, 14));
  legend("history", [["ramp", ""], ["hot", "best so far"], ...ends, ...edge]);
}

function drawCurves() {
  const width = widthOf("curves");
  if (!width) return;
  const box = { w: width, h: 250, left: 48, right: 14, top: 12, bottom: 40 }, svg = canvas("curves", box.w, box.h);
  const values = [], last = Math.max(2, ...D.curves.map((curve) => (curve.length ? curve[curve.length - 2] : 1)));
  for (const curve of D.curves) for (let k = 1; k < curve.length; k += 2) if (curve[k] !== null) values.push(curve[k]);
  const x = scaleOf(1, last, false), { px, py } = frame(svg, box, x, robust(values, []), tickLabels(x, Math.min(8, width / 80), true));
  add(svg, "text", { x: box.w - box.right, y: box.h - 6, "text-anchor": "end" }, "epoch");
  const line = (i) => {
    let path = "", isOpen = false;
    for (let k = 0; k < D.curves[i].length; k += 2) {
      const v = D.curves[i][k + 1];
      if (v === null) { isOpen = false; continue; }
      path += `${isOpen ? "L" : "M"}${px(D.curves[i][k]).toFixed(1)} ${py(v).toFixed(1)}`;
      isOpen = true;
    }
    return path;
  };
  layers(svg, "thin", line);
  listen(svg, (a, b) => {
    let found = null, least = 10;
    for (let i = 0; i < N; i++) {
      if (!isOn[i]) continue;
      const c = D.curves[i];
      for (let k = 0; k + 3 < c.length; k += 2) {
        const u = px(c[k]), v = px(c[k + 2]);
        if (a < u || a > v || c[k + 1] === null || c[k + 3] === null) continue;
        const d = Math.abs(py(c[k + 1]) + ((a - u) / (v - u || 1)) * (py(c[k + 3]) - py(c[k + 1])) - b);
        if (d < least) { least = d; found = i; }
      }
    }
    return found;
  });
  legend("curves", marks());
}

let showsAllSlices = false;
/* Labels of choices that have room side by side; with many choices every other one, and so on. */
function sliceLabels(axis, w) {
  const most = Math.max(1, Math.floor((w - 60) / 28)), step = Math.ceil(axis.n / most), shown = Math.ceil(axis.n / step);
  return range(axis.n).filter((c) => c % step === 0).map((v) => ({ at: v, text: cut(String(axis.show(v)), Math.max(4, Math.floor((w - 60) / 6.2 / shown))) }));
}
function drawSlices() {
  const width = widthOf("slices");
  if (!width) return;
  const across = Math.max(1, Math.min(axes.length, Math.floor(width / 235))), most = 9, shown = showsAllSlices ? axes : axes.slice(0, most);
  const w = Math.floor(width / across), h = 178, svg = canvas("slices", width, Math.ceil(shown.length / across) * h);
  const points = [];
  const cells = shown.map((axis, k) => {
    const g = add(svg, "g", { transform: `translate(${(k % across) * w},${Math.floor(k / across) * h})` });
    const isEdge = k % across === 0, box = { w: w - 8, h: h - 14, left: isEdge ? 44 : 14, right: 10, top: 24, bottom: 24, isBare: !isEdge };
    const pad = axis.n ? { t: (v) => (v - axis.scale.low + 0.5) / axis.n } : axis.scale;
    const labels = axis.isChoice ? sliceLabels(axis, w) : axis.ticks(4).map((v) => ({ at: v, text: fmt(v) }));
    const { px, py } = frame(g, box, pad, scoreScale, labels);
    add(add(g, "text", { class: "name", x: box.left, y: 14 }, cut(axis.name, Math.floor(w / 8))), "title", {}, axis.name);
    const spread = axis.n ? (0.6 * (box.w - box.left - box.right)) / axis.n : 0;
    const place = new Map();
    for (const i of scored) {
      if (axis.values[i] === null) continue;
      const a = px(axis.values[i]) + (((i * 0.618034) % 1) - 0.5) * spread, b = py(D.score[i]);
      place.set(i, [a, b]);
      points.push([a + (k % across) * w, b + Math.floor(k / across) * h, i]);
    }
    return layers(g, "dots", (i) => (place.has(i) ? dot(...place.get(i)) : ""));
  });
  listen(svg, (a, b) => nearest(points, a, b, 12));
  if (axes.length > most) moreButton("slices", showsAllSlices ? "Show fewer parameters" : `Show all ${axes.length} parameters`, () => { showsAllSlices = !showsAllSlices; drawAll(); });
  return cells;
}

function drawImportance() {
  const width = widthOf("importance");
  if (!width) return;
  const shown = D.importance.slice(0, 12), row = 34, left = Math.min(170, width * 0.36), h = shown.length * row + 26;
  const svg = canvas("importance", width, h);
  const most = Math.max(0.05, ...shown.flatMap((one) => [one.all[2], one.better ? one.better[2] : 0]));
  const x = scaleOf(0, most, false), px = (v) => left + x.t(v) * (width - left - 16);
  for (const v of x.ticks(5)) {
    add(svg, "line", { class: "grid", x1: px(v), x2: px(v), y1: 0, y2: h - 20 });
    add(svg, "text", { x: px(v), y: h - 6, "text-anchor": "middle" }, Math.round(v * 100) + "%");
  }
  shown.forEach((one, k) => {
    const y = k * row + 5;
    add(add(svg, "text", { class: "name", x: left - 10, y: y + 14, "text-anchor": "end" }, cut(one.name, Math.floor(left / 7.4))), "title", {}, one.name);
    [[one.all, y, 13, ""], [one.better, y + 15, 8, " late"]].forEach(([v, top, high, style]) => {
      if (!v) return;
      add(svg, "rect", { class: `bar${style}${v[3] ? "" : " unsure"}`, x: left, y: top, width: Math.max(1, px(v[0]) - left), height: high, rx: 1.5 });
      add(svg, "line", { class: "whisker", x1: px(v[1]), x2: px(v[2]), y1: top + high / 2, y2: top + high / 2 });
    });
  });
  legend("importance", [["s3", "all trials"], ["s1", "better half"], ["s0", "cannot be told from noise"]]);
}

/* Studies or trials compared: each with its curve, told apart by colour and dashes. */
function drawOverlay(key, lines, xName) {
  const width = widthOf(key);
  if (!width || !lines.length) return;
  const box = { w: width, h: 280, left: 52, right: 14, top: 12, bottom: 40 }, svg = canvas(key, box.w, box.h), values = [];
  let last = 1;
  for (const one of lines) for (let k = 0; k < one.points.length; k += 2) { last = Math.max(last, one.points[k]); if (one.points[k + 1] !== null) values.push(one.points[k + 1]); }
  const x = scaleOf(Math.min(1, ...lines.map((one) => one.points[0])), last, false), { px, py } = frame(svg, box, x, robust(values, []), tickLabels(x, Math.min(8, width / 80), true));
  add(svg, "text", { x: box.w - box.right, y: box.h - 6, "text-anchor": "end" }, xName);
  const line = document.createElement("div");
  line.className = "legend";
  lines.forEach((one, k) => {
    let path = "";
    for (let at = 0; at < one.points.length; at += 2) if (one.points[at + 1] !== null) path += `${path ? "L" : "M"}${px(one.points[at]).toFixed(1)} ${py(one.points[at + 1]).toFixed(1)}`;
    const style = `stroke: var(--c${k % 6}); stroke-width: 2`, dash = ["", "7 4", "2 3"][Math.floor(k / 6) % 3];
    add(add(svg, "path", { d: path, style, "stroke-dasharray": dash }), "title", {}, one.name);
    const item = document.createElement("span"), mark = document.createElement("i");
    mark.className = "key";
    mark.style.background = `var(--c${k % 6})`;
    item.append(mark, one.name);
    line.append(item);
  });
  document.querySelector(`#c-${key} .plot`).append(line);
}

/* The table of all trials: sorted by a click on a heading, rows follow the choice. */
const table = $("g-trials"), MAX_ROWS = 100;
let showsAllRows = false;
const rowPlace = new Map(D.number.map((number, i) => [number, i]));
function paintTable() {
  if (!table) return;
  let n = 0, total = 0;
  for (const row of table.tBodies[0].rows) {
    const on = isOn[rowPlace.get(Number(row.dataset.n))];
    total += on;
    row.hidden = !on || (!showsAllRows && ++n > MAX_ROWS);
  }
  $("more-rows").hidden = showsAllRows || total <= MAX_ROWS;
  $("more-rows").textContent = `Show all ${total} rows`;
}
function readyTable() {
  if (!table) return;
  const more = document.createElement("button");
  more.type = "button"; more.id = "more-rows";
  more.addEventListener("click", () => { showsAllRows = true; paintTable(); });
  table.parentNode.after(more);
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const isDown = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      const value = (row) => { const text = row.cells[at].textContent; return text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text); };
      const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : (isDown ? -1 : 1) * (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
      paintTable();
    });
  });
  table.addEventListener("pointerover", (event) => { const row = event.target.closest("tr[data-n]"); if (row) { hot = rowPlace.get(Number(row.dataset.n)); charts.forEach((chart) => chart.heat(hot)); } });
  table.addEventListener("pointerleave", () => { hot = null; charts.forEach((chart) => chart.heat(null)); });
}
function shadeConfusion() {
  const grid = $("g-confusion");
  if (!grid) return;
  for (const [r, row] of [...grid.tBodies[0].rows].entries()) {
    const cells = [...row.cells].slice(1), total = cells.reduce((sum, cell) => sum + Number(cell.textContent), 0);
    cells.forEach((cell, c) => {
      const share = total ? Number(cell.textContent) / total : 0;
      if (share) cell.style.background = `color-mix(in srgb, var(--${r === c ? "s3" : "hot"}) ${Math.round(r === c ? 45 * share : 25 + 60 * share)}%, transparent)`;
      else cell.style.opacity = 0.35;
    });
  }
}

function drawAll() {
  charts.length = 0;
  for (const one of D.overlays || []) drawOverlay(one.key, one.lines, one.x);
  if ($("c-history")) { drawParallel(); drawHistory(); drawCurves(); drawSlices(); }
  drawImportance();
  if ($("choice")) choose();
}
const begin = performance.now();
if (N > 300) document.documentElement.classList.add("many");
if ($("choice")) {
  $("choice").hidden = false;
  $("choose-all").addEventListener("click", () => { ranges.clear(); onlyThese = null; drawAll(); });
  $("choose-best").addEventListener("click", () => { onlyThese = new Set(byRank.filter((i) => D.state[i] === "C").slice(0, 10)); choose(); });
}
readyTable();
shadeConfusion();
drawAll();
document.documentElement.dataset.pageHeight = document.documentElement.scrollHeight;
document.documentElement.dataset.drawnMs = Math.round(performance.now() - begin);
let lastWidth = innerWidth, timer = 0;
addEventListener("resize", () => { if (innerWidth === lastWidth) return; lastWidth = innerWidth; clearTimeout(timer); timer = setTimeout(drawAll, 120); });
})();
