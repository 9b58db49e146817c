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
