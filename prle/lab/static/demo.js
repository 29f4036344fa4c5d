"use strict";
const $ = (id) => document.getElementById(id);
let shown = []; // what is redrawn when alpha changes

function make(kind, text, parent) {
  const it = document.createElement(kind);
  it.textContent = text;
  parent.append(it);
  return it;
}

async function pixels(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}

function panel(title, size, parent) {
  const figure = make("figure", "", parent);
  const canvas = make("canvas", "", figure);
  canvas.width = canvas.height = size;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", title);
  make("figcaption", title, figure);
  return canvas.getContext("2d");
}

// ranks: 0 is not attended, 1 is attended most, 255 least of the primary region
const inside = (ranks, k, alpha) => ranks.data[4 * k] > 0 && ranks.data[4 * k] <= 255 * alpha;

function outline(face, ranks) {
  const made = new ImageData(new Uint8ClampedArray(face.data), face.width, face.height);
  for (let k = 0; k < face.width * face.height; k++) {
    const x = k % face.width;
    const near = [x > 0 ? k - 1 : k, x < face.width - 1 ? k + 1 : k, k - face.width, k + face.width];
    if (inside(ranks, k, 1) && near.some((n) => !inside(ranks, n, 1))) made.data.set([230, 159, 0], 4 * k);
  }
  return made;
}

function heated(face, heat) {
  const made = new ImageData(face.width, face.height);
  for (let k = 0; k < made.data.length; k += 4) {
    const h = heat.data[k] / 255;
    made.data[k] = 0.45 * face.data[k] + 0.55 * 255 * Math.min(1, 1.6 * h);
    made.data[k + 1] = 0.45 * face.data[k + 1] + 0.55 * 255 * Math.max(0, 1.6 * h - 0.6);
    made.data[k + 2] = 0.45 * face.data[k + 2] + 0.55 * 90 * (1 - h);
    made.data[k + 3] = 255;
  }
  return made;
}

function masked(face, ranks, alpha) {
  const made = new ImageData(new Uint8ClampedArray(face.data), face.width, face.height);
  for (let k = 0; k < face.width * face.height; k++) if (inside(ranks, k, alpha)) made.data.set([0, 0, 0], 4 * k);
  return made;
}

function curve(row, parent) {
  const { unit, times, scores } = row.curve;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "score over time");
  const length = times[times.length - 1] - times[0] || 1;
  const line = (points, colour, dash) => {
    const path = document.createElementNS(svg.namespaceURI, "polyline");
    const of = { points: points.join(" "), fill: "none", stroke: colour, "vector-effect": "non-scaling-stroke" };
    if (dash) of["stroke-dasharray"] = "4 3";
    for (const name in of) path.setAttribute(name, of[name]);
    svg.append(path);
  };
  line(times.map((t, k) => `${(100 * (t - times[0])) / length},${100 - 100 * scores[k]}`), "#0072b2", false);
  if (row.threshold !== null) line([`0,${100 - 100 * row.threshold}`, `100,${100 - 100 * row.threshold}`], "#d55e00", true);
  parent.append(svg);
  make("p", `score from ${unit === "seconds" ? "second" : unit} ${times[0]} to ${times[times.length - 1]}`, parent);
}

function words(row) {
  const score = (row.calibrated ?? row.p_fake).toFixed(3);
  if (row.threshold === null) return `score ${score} (no threshold is known)`;
  const many = row.frames > 1 ? `, ${(100 * row.above).toFixed(0)}% of ${row.faces} frames above it` : "";
  return `score ${score}, threshold ${row.threshold.toFixed(3)}${many}`;
}

async function add(row) {
  const box = make("div", "", $("rows"));
  box.className = "row";
  make("h2", row.detector, box);
  if (row.p_fake === null) return make("p", row.note, box);
  make("p", words(row) + (row.note ? ` (${row.note})` : ""), box).className = "score";
  if (row.unlike) make("p", `Unlike the faces of its training: ${row.unlike}. The score means little.`, box).className = "odd";
  if (row.curve.times) curve(row, box);
  const faces = make("div", "", box);
  faces.className = "faces";
  const [face, heat, ranks] = await Promise.all([row.face, row.heat, row.ranks].map(pixels));
  panel("primary region", face.width, faces).putImageData(outline(face, ranks), 0, 0);
  panel("heat map", face.width, faces).putImageData(heated(face, heat), 0, 0);
  const canvas = panel("masked", face.width, faces);
  shown.push((alpha) => canvas.putImageData(masked(face, ranks, alpha), 0, 0));
}

function redraw() {
  const alpha = Number($("alpha").value);
  $("share").value = alpha.toFixed(2);
  for (const draw of shown) draw(alpha);
}

async function send(file) {
  $("state").textContent = `looking at ${file.name} ...`;
  $("result").hidden = true;
  shown = [];
  $("rows").replaceChildren();
  const headers = { "Content-Type": "application/octet-stream" };
  try {
    const reply = await fetch(`score?name=${encodeURIComponent(file.name)}`, { method: "POST", headers, body: file });
    const told = await reply.json();
    if (!reply.ok) throw new Error(told.error);
    for (const row of told.rows) await add(row);
    $("state").textContent = file.name;
    $("result").hidden = false;
    redraw();
  } catch (e) {
    $("state").textContent = e.message;
  }
}

$("alpha").addEventListener("input", redraw);
$("file").addEventListener("change", () => $("file").files[0] && send($("file").files[0]));
for (const kind of ["dragover", "dragleave", "drop"])
  $("drop").addEventListener(kind, (e) => {
    e.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && e.dataTransfer.files[0]) send(e.dataTransfer.files[0]);
  });
fetch("detectors").then((r) => r.json()).then((names) => ($("detectors").textContent = names.join(", ")));
