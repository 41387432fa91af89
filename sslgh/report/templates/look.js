"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const labels = new Map(); // position -> kind
  const kinds = []; // in the order of their keys

  // What cannot be shown as text is shown as an escape, as elsewhere.
  const shownName = (name) => name.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]/gu,
    (one) => "\\u" + one.codePointAt(0).toString(16).padStart(4, "0"));
  const name = (i) => shownName(data.files[i] ?? "");
  const picture = (image, i) => { if (data.pictures[i]) image.src = data.pictures[i]; else image.removeAttribute("src"); };

  for (const button of document.querySelectorAll("button[data-photo]")) {
    picture(button.firstElementChild, button.dataset.photo);
    button.title = name(button.dataset.photo);
    button.addEventListener("click", () => show(Number(button.dataset.photo)));
  }
  for (const image of document.querySelectorAll("img[data-photo]")) picture(image, image.dataset.photo);

  function photoButton(i) {
    const button = document.createElement("button"), image = document.createElement("img");
    button.className = "photo"; button.type = "button"; button.title = name(i);
    image.alt = name(i); picture(image, i);
    button.append(image);
    if (labels.has(i)) { const mark = document.createElement("span"); mark.className = "mark"; mark.textContent = labels.get(i); button.append(mark); }
    button.addEventListener("click", () => show(i));
    return button;
  }

  // A photo and its nearest.
  const dialog = byId("dialog");
  function show(i) {
    byId("dialog-name").textContent = name(i);
    byId("dialog-picture").alt = name(i);
    picture(byId("dialog-picture"), i);
    const kind = labels.get(i);
    byId("dialog-group").textContent = `Group ${data.group[i]}` + (kind ? `, labeled ${kind}` : "");
    byId("dialog-near").replaceChildren(...(data.near[i] ?? []).map(photoButton));
    if (!dialog.open) dialog.showModal();
  }
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // Kinds and labels.
  function addKind(text) {
    const kind = text.trim();
    if (kind && !kinds.includes(kind)) { kinds.push(kind); showKinds(); }
    return kind;
  }
  function showKinds() {
    byId("known-kinds").replaceChildren(...kinds.map((kind) => { const option = document.createElement("option"); option.value = kind; return option; }));
    const keys = byId("keys");
    if (!keys) return;
    keys.replaceChildren(...kinds.map((kind, k) => {
      const item = document.createElement("li"), button = document.createElement("button");
      button.className = "button"; button.type = "button";
      if (k < 9) { const key = document.createElement("kbd"); key.textContent = k + 1; button.append(key); }
      button.append(kind);
      button.setAttribute("aria-pressed", labels.get(data.first[at]) === kind);
      button.addEventListener("click", () => use(kind));
      item.append(button);
      return item;
    }));
  }
  for (const field of document.querySelectorAll("input[data-group]")) field.addEventListener("change", () => addKind(field.value));

  let at = 0;
  const strip = [...document.querySelectorAll("[data-label]")];
  function go(position, scroll = true) {
    if (!strip.length) return;
    at = Math.max(0, Math.min(strip.length - 1, position));
    const i = data.first[at];
    picture(byId("large"), i);
    byId("large").alt = name(i);
    byId("large-name").textContent = name(i);
    byId("large-reason").textContent = strip[at].dataset.reason;
    strip.forEach((button, n) => button.setAttribute("aria-current", n === at));
    if (scroll) strip[at].parentElement.scrollLeft = strip[at].offsetLeft - strip[at].parentElement.clientWidth / 2;
    showKinds();
    showDone();
  }
  function mark(button, kind) {
    button.querySelector(".mark")?.remove();
    if (kind) { const text = document.createElement("span"); text.className = "mark"; text.textContent = kind; button.append(text); }
  }
  function use(kind) {
    if (kind) labels.set(data.first[at], kind); else labels.delete(data.first[at]);
    mark(strip[at], kind);
    go(kind ? at + 1 : at);
  }
  function showDone() {
    const done = data.first.filter((i) => labels.has(i)).length;
    byId("done").textContent = `Photo ${at + 1} of ${strip.length}; ${done} labeled` + (labels.size > done ? `, and ${labels.size - done} on the map` : "") + (kinds.length ? "" : ". Add a kind to begin.");
    byId("done-bar").style.width = `${100 * done / strip.length}%`;
  }
  if (strip.length) {
    strip.forEach((button, n) => button.addEventListener("click", () => go(n, false)));
    byId("next").addEventListener("click", () => go(at + 1));
    byId("previous").addEventListener("click", () => go(at - 1));
    byId("new-kind").addEventListener("submit", (event) => {
      event.preventDefault();
      const kind = addKind(byId("new-name").value);
      byId("new-name").value = "";
      if (kind) use(kind);
    });
    byId("save").addEventListener("click", save);
    document.addEventListener("keydown", (event) => {
      if (dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
      if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
      const box = byId("label").getBoundingClientRect();
      if (box.top > innerHeight * 0.7 || box.bottom < innerHeight * 0.3) return; // the keys belong to what is seen
      if (/^[1-9]$/.test(event.key) && kinds[event.key - 1]) use(kinds[event.key - 1]);
      else if (event.key === "0") use(null);
      else if (event.key === "ArrowRight") go(at + 1);
      else if (event.key === "ArrowLeft") go(at - 1);
      else return;
      event.preventDefault();
    });
    go(0, false);
  }

  // labels.csv as `sslgh classify` reads it: file,kind, quoted as CSV has it.
  const cell = (text) => /[",\r\n]/.test(text) || /^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  function labelsCsv() {
    const rows = [...labels].map(([i, kind]) => [data.files[i], kind]);
    return [["file", "kind"], ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
  }
  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([labelsCsv()], { type: "text/csv" }));
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    byId("done").textContent = `labels.csv saved: ${labels.size} photos, ${new Set(labels.values()).size} kinds`;
    saved = labels.size;
  }
  let saved = 0;
  addEventListener("beforeunload", (event) => { if (labels.size > saved) event.preventDefault(); });


  // The map.
  const canvas = byId("canvas"), tip = byId("tip"), pen = canvas.getContext("2d");
  const colors = ["#2f7fb8", "#d9822b", "#4f9d69", "#b5539c", "#c2a52c", "#6a6fc4", "#c0504d", "#3aa6a6"];
  const view = { low: [-1.06, -1.06], high: [1.06, 1.06] };
  let places = data.map.neighbors, loop = [], hovered = -1, chosen = new Set();
  const size = () => [canvas.clientWidth, canvas.clientHeight];
  function onCanvas([x, y]) {
    const [width, height] = size();
    return [(x - view.low[0]) / (view.high[0] - view.low[0]) * width, height - (y - view.low[1]) / (view.high[1] - view.low[1]) * height];
  }
  function draw() {
    const [width, height] = size(), ratio = devicePixelRatio || 1;
    canvas.width = width * ratio; canvas.height = height * ratio;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const radius = places.length > 2000 ? 2.4 : places.length > 400 ? 3.4 : 5;
    const quiet = getComputedStyle(document.body).getPropertyValue("--quiet");
    places.forEach((place, n) => {
      const [x, y] = onCanvas(place), group = data.group[data.map.photos[n]];
      pen.globalAlpha = chosen.size && !chosen.has(n) ? 0.18 : 0.82;
      pen.fillStyle = colors[group - 1] ?? quiet;
      pen.beginPath(); pen.arc(x, y, n === hovered ? radius + 3 : radius, 0, 7); pen.fill();
    });
    pen.globalAlpha = 1;
    if (loop.length > 1) {
      pen.strokeStyle = getComputedStyle(document.body).getPropertyValue("--accent");
      pen.lineWidth = 1.5; pen.setLineDash([5, 4]);
      pen.beginPath(); loop.forEach(([x, y]) => pen.lineTo(x, y)); pen.closePath(); pen.stroke();
      pen.setLineDash([]);
    }
  }
  function nearestDot(x, y) {
    let best = -1, least = 14 * 14;
    places.forEach((place, n) => {
      const [px, py] = onCanvas(place), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) { least = distance; best = n; }
    });
    return best;
  }
  function inside([x, y], polygon) {
    let is = false;
    for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
      const [ax, ay] = polygon[a], [bx, by] = polygon[b];
      if ((ay > y) !== (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax) is = !is;
    }
    return is;
  }
  function point(event) { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; }
  function hover(n, x, y) {
    if (n !== hovered) { hovered = n; draw(); }
    tip.hidden = n < 0;
    if (n < 0) return;
    const i = data.map.photos[n], [width, height] = size();
    tip.firstElementChild.hidden = !data.pictures[i];
    picture(tip.firstElementChild, i);
    tip.lastElementChild.textContent = name(i);
    tip.style.left = `${x + 166 > width ? Math.max(0, x - 162) : x + 14}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 10, height - 200))}px`;
  }
  canvas.addEventListener("pointerdown", (event) => { loop = [point(event)]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = point(event);
    if (loop.length) { loop.push([x, y]); tip.hidden = true; draw(); } else hover(nearestDot(x, y), x, y);
  });
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("pointercancel", () => { loop = []; draw(); });
  canvas.addEventListener("pointerup", (event) => {
    const [x, y] = point(event), drawn = loop;
    loop = [];
    const length = drawn.reduce((sum, p, n) => n ? sum + Math.hypot(p[0] - drawn[n - 1][0], p[1] - drawn[n - 1][1]) : 0, 0);
    if (length < 12) { const n = nearestDot(x, y); if (n >= 0) show(data.map.photos[n]); choose([]); return; }
    choose(places.flatMap((place, n) => inside(onCanvas(place), drawn) ? [n] : []));
  });
  function choose(found) {
    chosen = new Set(found);
    byId("loop").hidden = !found.length;
    byId("whole").hidden = !found.length;
    byId("loop-count").textContent = `${found.length.toLocaleString("en-US")} photos in the loop` + (found.length > 60 ? ", the first 60 shown" : "");
    byId("loop-photos").replaceChildren(...found.slice(0, 60).map((n) => photoButton(data.map.photos[n])));
    draw();
  }
  byId("whole").addEventListener("click", () => choose([]));
  byId("loop-name").addEventListener("click", () => {
    const kind = addKind(byId("loop-kind").value);
    if (!kind) { byId("loop-kind").focus(); return; }
    for (const n of chosen) labels.set(data.map.photos[n], kind);
    strip.forEach((button, n) => mark(button, labels.get(data.first[n])));
    byId("loop-photos").replaceChildren(...[...chosen].slice(0, 60).map((n) => photoButton(data.map.photos[n])));
    if (strip.length) go(at, false);
  });
  for (const button of document.querySelectorAll("[data-map]")) button.addEventListener("click", () => {
    places = data.map[button.dataset.map];
    for (const other of document.querySelectorAll("[data-map]")) other.setAttribute("aria-pressed", other === button);
    choose([]);
  });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", draw);
})();
