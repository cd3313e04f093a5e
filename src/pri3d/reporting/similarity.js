// One widget: the element before this script. Data stand in its attributes; nothing is fetched or evaluated.
(() => {
  "use strict";
  const root = document.currentScript.previousElementSibling;
  const data = JSON.parse(root.dataset.similarity);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const [rows, columns] = data.grid;
  const [width, height] = data.size;
  const cells = rows * columns;
  const palette = bytes(data.palette);
  const sharp = Math.max(Math.ceil(640 / width), 1); // canvas pixels a picture's pixel: marks are drawn finer
  const state = { frame: 0, cell: data.start, stretch: false };

  // One picture a frame and row; row 0 shows the frames themselves, the others a network each.
  const pictures = [...root.querySelectorAll("img")];
  const photos = pictures.slice(0, 2);
  const make = (tag, values) => Object.assign(document.createElement(tag), values);
  const canvases = pictures.map((img, k) => {
    const canvas = make("canvas", { width: sharp * width, height: sharp * height });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", img.alt);
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const at = (value, length, count) => Math.min(Math.max(Math.floor((value / length) * count), 0), count - 1);
      state.frame = k % 2;
      state.cell = at(event.clientY - box.top, box.height, rows) * columns +
        at(event.clientX - box.left, box.width, columns);
      draw();
    });
    return canvas;
  });

  // Features of a network: both frames, cell by cell, as whole numbers; only their directions count.
  const networks = data.networks.map(({ name, features }) => {
    const values = new Int8Array(bytes(features).buffer);
    const channels = values.length / (2 * cells);
    const norms = new Float32Array(2 * cells);
    for (let i = 0; i < 2 * cells; i++) {
      let sum = 0;
      for (let c = i * channels; c < (i + 1) * channels; c++) sum += values[c] * values[c];
      norms[i] = Math.sqrt(sum) || 1;
    }
    return { name, values, channels, norms };
  });

  function cosines({ values, channels, norms }) { // of the chosen cell with all cells of both frames
    const query = state.frame * cells + state.cell, from = query * channels;
    const out = new Float32Array(2 * cells);
    for (let i = 0; i < 2 * cells; i++) {
      let sum = 0;
      for (let c = 0, at = i * channels; c < channels; c++, at++) sum += values[at] * values[from + c];
      out[i] = sum / (norms[i] * norms[query]);
    }
    return out;
  }

  const place = (cell) => [
    (((cell % columns) + 0.5) * width) / columns, ((Math.floor(cell / columns) + 0.5) * height) / rows,
  ];

  function partner() { // where the chosen point really is in the other frame, null where that is not known
    const [u, v] = place(state.cell), own = 2 * state.frame, other = 2 - own;
    let found = null, best = 1.5 * Math.max(width / columns, height / rows);
    for (const match of data.matches) {
      const gap = Math.hypot(match[own] - u, match[own + 1] - v);
      if (gap < best) [best, found] = [gap, [match[other], match[other + 1]]];
    }
    return found;
  }

  let grey = null; // of both frames, bytes
  const small = make("canvas", { width, height });
  const put = (canvas, picture) => {
    const paper = canvas.getContext("2d");
    paper.imageSmoothingEnabled = picture !== small;
    paper.drawImage(picture, 0, 0, canvas.width, canvas.height);
  };
  function shade(canvas, frame, values) {
    const paper = small.getContext("2d"), image = paper.createImageData(width, height);
    const part = values.subarray(frame * cells, (frame + 1) * cells);
    let low = 0, high = 1;
    if (state.stretch) [low, high] = [Math.min(...part), Math.max(...part)];
    for (let y = 0, p = 0; y < height; y++) {
      const row = Math.floor((y * rows) / height) * columns;
      for (let x = 0; x < width; x++, p++) {
        const share = (part[row + Math.floor((x * columns) / width)] - low) / (high - low || 1);
        const color = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1));
        for (let c = 0; c < 3; c++)
          image.data[4 * p + c] = data.blend * palette[color + c] + (1 - data.blend) * grey[frame][p];
        image.data[4 * p + 3] = 255;
      }
    }
    paper.putImageData(image, 0, 0);
    put(canvas, small);
  }

  function ring(canvas, at, color, cross) {
    const paper = canvas.getContext("2d"), r = canvas.width / 50, [u, v] = at.map((x) => x * sharp);
    for (const [style, thick] of [["#000", r / 2], [color, r / 4]]) {
      paper.beginPath();
      if (cross) {
        paper.moveTo(u - r, v - r); paper.lineTo(u + r, v + r);
        paper.moveTo(u + r, v - r); paper.lineTo(u - r, v + r);
      } else paper.arc(u, v, r, 0, 7);
      paper.strokeStyle = style;
      paper.lineWidth = thick;
      paper.stroke();
    }
  }

  const said = make("p", {});
  said.setAttribute("aria-live", "polite");

  function draw() {
    if (!grey) return;
    const { frame } = state, other = 1 - frame, point = place(state.cell), truth = partner();
    photos.forEach((img, k) => put(canvases[k], img));
    const words = networks.map((network, n) => {
      const values = cosines(network), two = canvases.slice(2 * n + 2, 2 * n + 4);
      two.forEach((canvas, k) => shade(canvas, k, values));
      const there = values.subarray(other * cells, (other + 1) * cells);
      const best = place(there.indexOf(Math.max(...there)));
      ring(two[other], best, "#ffffff", true);
      const off = truth ? `${Math.round(Math.hypot(best[0] - truth[0], best[1] - truth[1]))} px off` : "marked";
      return `${network.name}: ${off}`;
    });
    canvases.forEach((canvas, k) => {
      if (k % 2 === frame) ring(canvas, point, "#ff5aa5", false);
      else if (truth) ring(canvas, truth, "#2de060", false);
    });
    said.textContent = (truth ? "The most similar place of the other frame, from the true one: "
      : "What is chosen has no known partner in the other frame; its most similar place: ") + words.join("; ") + ".";
  }

  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  root.addEventListener("keydown", (event) => {
    const step = moves[event.key], frame = canvases.indexOf(event.target);
    if (frame < 0 || event.ctrlKey || event.altKey || event.metaKey || !(step || event.key === "0")) return;
    event.preventDefault();
    if (frame !== state.frame || !step) Object.assign(state, { frame, cell: data.start });
    if (step) {
      const row = Math.min(Math.max(Math.floor(state.cell / columns) + step[0], 0), rows - 1);
      const column = Math.min(Math.max((state.cell % columns) + step[1], 0), columns - 1);
      state.cell = row * columns + column;
    }
    draw();
  });

  Promise.all(photos.map((img) => img.decode())).then(() => {
    grey = photos.map((img) => {
      const canvas = make("canvas", { width, height }), paper = canvas.getContext("2d");
      paper.drawImage(img, 0, 0, width, height);
      const { data: rgba } = paper.getImageData(0, 0, width, height);
      return Uint8Array.from({ length: width * height },
        (_, p) => 0.299 * rgba[4 * p] + 0.587 * rgba[4 * p + 1] + 0.114 * rgba[4 * p + 2]);
    });
    pictures.forEach((img, k) => img.after(canvases[k]));
    canvases.slice(0, 2).forEach((canvas) => { canvas.tabIndex = 0; });
    const box = make("input", { type: "checkbox" }), label = make("label", {});
    box.addEventListener("change", () => { state.stretch = box.checked; draw(); });
    label.append(box, " stretch the colours of each map");
    root.querySelector(".pri3d-grid").after(said, label);
    root.classList.add("pri3d-on");
    draw();
  });
})();
