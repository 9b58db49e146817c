// Optional: the page is complete without this script.
"use strict";

// The choice of theme overrides that of the system. Without storage it lasts until the page is closed.
const store = {
  get: () => { try { return localStorage.getItem("fourstage-theme"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("fourstage-theme", value); } catch { /* forbidden */ } },
};
const root = document.documentElement;
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
if (["light", "dark"].includes(store.get())) root.dataset.theme = store.get();

const toggle = document.createElement("button");
toggle.type = "button";
toggle.className = "theme";
const name = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
toggle.title = "Switch between light and dark";
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  store.set(root.dataset.theme);
  name();
});
name();
document.querySelector(".brand").append(toggle);

// Copy buttons beside the command lines.
for (const block of document.querySelectorAll("pre.command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const text = block.querySelector("code").textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch {
      getSelection().selectAllChildren(block.querySelector("code"));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.parentElement.append(button);
}

// The values under the pointer, written into the caption of the chart.
const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));

for (const chart of document.querySelectorAll("svg.chart[data-lines]")) {
  const lines = JSON.parse(chart.dataset.lines).filter((line) => line.points.length);
  const output = chart.closest("figure").querySelector("output");
  const marks = svg("g", { class: "marks" });
  if (!lines.length) continue;
  chart.append(marks);
  chart.addEventListener("pointermove", (event) => {
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).x;
    const at = nearest(lines[0].points, x);
    marks.replaceChildren(svg("line", { x1: at[0], x2: at[0], y1: chart.dataset.top, y2: chart.dataset.bottom }));
    const words = lines.map((line) => {
      const point = nearest(line.points, at[0]);
      marks.append(svg("circle", { cx: point[0], cy: point[1], r: 3.5, class: line.look }));
      return lines.length > 1 ? `${line.name} ${point[3]}` : point[3];
    });
    output.textContent = `${chart.dataset.xName} ${at[2]}: ${words.join(", ")}`;
  });
  chart.addEventListener("pointerleave", () => { marks.replaceChildren(); output.textContent = ""; });
}

// Pictures of attention: a click shows that of the clicked point, in all layers of the same network and image.
for (const part of document.querySelectorAll("section")) {
  const drawings = [...part.querySelectorAll("svg[data-place]")].filter((one) => !one.querySelector(".dot"));
  const tiles = [...part.querySelectorAll("svg.tiles")];
  if (!tiles.length) continue;
  const numbers = (text) => text.split(" ").map(Number);
  const closest = (cells, at) => cells.reduce((best, cell, i) => (Math.abs(cell - at) < Math.abs(cells[best] - at) ? i : best), 0);
  const words = document.createElement("p");
  words.className = "quiet";
  words.setAttribute("role", "status");
  words.textContent = "Click a point of a picture to see where it looks.";
  part.querySelector("h2").after(words);
  const choose = (across, down) => {  // shares of the image's sides
    for (const tile of tiles) {
      const [wide, tall] = numbers(tile.dataset.tile);
      const column = closest(numbers(tile.dataset.columns), across * wide - 0.5);
      const row = closest(numbers(tile.dataset.rows), down * tall - 0.5);
      tile.setAttribute("viewBox", `${column * wide} ${row * tall} ${wide} ${tall}`);
    }
    for (const drawing of drawings) {
      const [left, top, width, height] = numbers(drawing.dataset.place);
      const [x, y] = [left + across * width, top + down * height];
      for (const path of drawing.querySelectorAll(".outline path")) {
        path.setAttribute("d", `M${x - 6} ${y}H${x + 6}M${x} ${y - 6}V${y + 6}`);
      }
    }
    const [, , , , columns, rows] = numbers(drawings[0].dataset.place);
    const point = `${Math.floor(across * columns)},${Math.floor(down * rows)}`;
    words.textContent = `The cross is the point ${point}; the maps are those of the nearest cells.`;
    part.querySelector("figcaption .point").textContent = point;
  };
  for (const drawing of drawings) {
    drawing.classList.add("choosing");
    drawing.addEventListener("click", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
      const [left, top, width, height] = numbers(drawing.dataset.place);
      const [across, down] = [(at.x - left) / width, (at.y - top) / height];
      if (across >= 0 && across < 1 && down >= 0 && down < 1) choose(across, down);
    });
  }
}
