// One widget: the element before this script. Data stand in its attributes; nothing is fetched or evaluated.
(() => {
  "use strict";
  const root = document.currentScript.previousElementSibling;
  const scene = JSON.parse(root.dataset.scene);
  const canvas = root.querySelector("canvas");
  const paper = canvas.getContext("2d");
  if (!paper) return; // the static text stays
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const shorts = (text) => {
    const view = new DataView(bytes(text).buffer);
    return Float32Array.from({ length: view.byteLength / 2 }, (_, k) => view.getInt16(2 * k, true) * scene.step);
  };
  const packed = (rgb) => { // canvas pixels are bytes r, g, b, alpha whatever the machine's order
    const out = new Uint8Array((rgb.length / 3) * 4).fill(255);
    for (let k = 0; k < rgb.length; k++) out[4 * Math.floor(k / 3) + (k % 3)] = rgb[k];
    return new Uint32Array(out.buffer);
  };
  const points = shorts(scene.points), colors = packed(bytes(scene.colors));
  const cameras = scene.cameras, path = scene.path;
  const matches = shorts(scene.matches), matchColors = bytes(scene.matchColors);

  // The viewer orbits around `target`; z is up. Angles in radians.
  const home = { target: [0, 0, (scene.low + scene.cut) / 2], yaw: scene.yaw, pitch: -0.66, distance: scene.radius * 1.8,
    cut: scene.cut, focal: 1.1 }; // focal length in image heights
  const state = { cameras: true, matches: true, named: -1 };
  const reset = () => Object.assign(state, home, { target: [...home.target] });
  reset();
  let pixels, depths, waiting = false;

  const axes = () => {
    const [cy, sy, cp, sp] = [Math.cos(state.yaw), Math.sin(state.yaw), Math.cos(state.pitch), Math.sin(state.pitch)];
    const ahead = [cy * cp, sy * cp, sp], right = [sy, -cy, 0], above = [-cy * sp, -sy * sp, cp];
    return { ahead, right, above, eye: state.target.map((t, k) => t - state.distance * ahead[k]) };
  };
  const into = (looking, p) => {
    const d = [p[0] - looking.eye[0], p[1] - looking.eye[1], p[2] - looking.eye[2]];
    const along = (a) => d[0] * a[0] + d[1] * a[1] + d[2] * a[2];
    return [along(looking.right), along(looking.above), along(looking.ahead)];
  };
  const NEAR = 0.02;
  const flat = (q) => {
    const scale = (state.focal * canvas.height) / q[2];
    return [canvas.width / 2 + q[0] * scale, canvas.height / 2 - q[1] * scale];
  };

  function drawPoints(looking) {
    const { eye, right, above, ahead } = looking;
    const [w, h] = [canvas.width, canvas.height];
    const focal = state.focal * h, shown = new Uint32Array(pixels.data.buffer);
    shown.fill(0);
    depths.fill(Infinity);
    for (let k = 0, i = 0; k < colors.length; k++, i += 3) {
      if (points[i + 2] > state.cut) continue;
      const x = points[i] - eye[0], y = points[i + 1] - eye[1], z = points[i + 2] - eye[2];
      const far = x * ahead[0] + y * ahead[1] + z * ahead[2];
      if (far < NEAR) continue;
      const scale = focal / far;
      const u = w / 2 + (x * right[0] + y * right[1]) * scale;
      const v = h / 2 - (x * above[0] + y * above[1] + z * above[2]) * scale;
      const side = Math.min(Math.max(scene.spacing * 1.5 * scale, 1), 24);
      const left = Math.max(Math.round(u - side / 2), 0), end = Math.min(Math.round(u + side / 2), w);
      const low = Math.min(Math.round(v + side / 2), h);
      for (let row = Math.max(Math.round(v - side / 2), 0); row < low; row++)
        for (let at = row * w + left; at < row * w + end; at++)
          if (far < depths[at]) { depths[at] = far; shown[at] = colors[k]; }
    }
    paper.putImageData(pixels, 0, 0);
  }

  function drawLine(looking, a, b) { // adds to the current path what lies before the viewer
    let p = into(looking, a), q = into(looking, b);
    if (p[2] < NEAR && q[2] < NEAR) return;
    if (p[2] < NEAR) [p, q] = [q, p];
    if (q[2] < NEAR) {
      const t = (p[2] - NEAR) / (p[2] - q[2]);
      q = [p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1]), NEAR];
    }
    paper.moveTo(...flat(p));
    paper.lineTo(...flat(q));
  }

  function stroke(color, width, lines) {
    paper.beginPath();
    lines();
    paper.strokeStyle = color;
    paper.lineWidth = width * ratio();
    paper.stroke();
  }

  function drawCameras(looking) {
    const frustum = ({ corners: c, centre }) => {
      for (let k = 0; k < 4; k++) {
        drawLine(looking, centre, c[k]);
        drawLine(looking, c[k], c[(k + 1) % 4]);
      }
    };
    stroke("#56b4e9", 1.6, () => { for (let k = 1; k < path.length; k++) drawLine(looking, path[k - 1], path[k]); });
    stroke("#c2334d", 1.1, () => cameras.forEach(frustum));
    if (state.named < 0) return;
    const camera = cameras[state.named], q = into(looking, camera.centre);
    stroke("#ffb000", 2.4, () => frustum(camera));
    if (q[2] < NEAR) return;
    const [u, v] = flat(q);
    paper.font = `${13 * ratio()}px sans-serif`;
    paper.lineWidth = 4 * ratio();
    paper.strokeStyle = "#000";
    paper.fillStyle = "#fff";
    paper.strokeText(camera.name, u + 8 * ratio(), v - 8 * ratio());
    paper.fillText(camera.name, u + 8 * ratio(), v - 8 * ratio());
  }

  function drawMatches(looking) {
    for (let k = 0; k < matches.length / 6; k++) {
      const [r, g, b] = matchColors.subarray(3 * k, 3 * k + 3);
      const ends = matches.subarray(6 * k, 6 * k + 6);
      stroke(`rgb(${r},${g},${b})`, 1.3, () => drawLine(looking, ends.subarray(0, 3), ends.subarray(3)));
    }
  }

  function draw() {
    waiting = false;
    const looking = axes();
    drawPoints(looking);
    if (state.matches) drawMatches(looking);
    if (state.cameras) drawCameras(looking);
  }
  const redraw = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };

  const ratio = () => Math.min(window.devicePixelRatio || 1, 2);
  function resize() {
    const width = Math.max(Math.round(canvas.clientWidth * ratio()), 1);
    const height = Math.max(Math.round(canvas.clientHeight * ratio()), 1);
    if (pixels && canvas.width === width && canvas.height === height) return;
    [canvas.width, canvas.height] = [width, height];
    pixels = paper.createImageData(width, height);
    depths = new Float32Array(width * height);
    draw();
  }

  const turn = (x, y) => {
    state.yaw -= x;
    state.pitch = Math.min(Math.max(state.pitch - y, -1.55), 1.55);
    redraw();
  };
  const zoom = (factor) => {
    state.distance = Math.min(Math.max(state.distance * factor, 0.05), scene.radius * 20);
    redraw();
  };
  const move = (x, y) => { // shares of the canvas height
    const { right, above } = axes(), far = state.distance / state.focal;
    state.target = state.target.map((t, k) => t - far * (x * right[k] - y * above[k]));
    redraw();
  };
  function lookThrough(k) {
    const { centre, ahead, focal } = cameras[k];
    state.yaw = Math.atan2(ahead[1], ahead[0]);
    state.pitch = Math.asin(Math.min(Math.max(ahead[2], -1), 1));
    state.distance = 0.05;
    state.focal = focal;
    state.target = centre.map((c, i) => c + 0.05 * ahead[i]);
    state.named = -1;
    redraw();
  }
  function nearest(event) {
    const box = canvas.getBoundingClientRect(), looking = axes();
    let found = -1, best = 14 * ratio();
    cameras.forEach(({ centre }, k) => {
      const q = into(looking, centre);
      if (q[2] < NEAR || !state.cameras) return;
      const [u, v] = flat(q);
      const gap = Math.hypot(u - (event.clientX - box.left) * ratio(), v - (event.clientY - box.top) * ratio());
      if (gap < best) [best, found] = [gap, k];
    });
    return found;
  }

  const held = new Map(); // pointers that are down -> where they were
  let dragged = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, event);
    if (held.size === 1) dragged = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId), size = canvas.clientHeight;
    if (!before) {
      const named = nearest(event);
      if (named !== state.named) { state.named = named; redraw(); }
      return;
    }
    const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
    dragged += Math.hypot(x, y);
    held.set(event.pointerId, event);
    if (held.size === 1) {
      if (event.shiftKey || event.buttons & 6) move(x / size, y / size);
      else turn((x / size) * 4, (y / size) * 4);
      return;
    }
    const other = [...held.values()].find((p) => p.pointerId !== event.pointerId);
    const gap = (p) => Math.max(Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY), 1);
    move(x / size / 2, y / size / 2);
    zoom(gap(before) / gap(event));
  });
  const release = (event) => {
    if (held.delete(event.pointerId) && event.type === "pointerup" && dragged < 4 && nearest(event) >= 0)
      lookThrough(nearest(event));
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls on
    event.preventDefault();
    zoom(Math.exp(Math.sign(event.deltaY) * 0.12));
  }, { passive: false });

  const keys = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  };
  const back = () => { reset(); cut.value = state.cut; redraw(); };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const step = keys[event.key];
    if (step && event.shiftKey) move(step[0] * 0.05, step[1] * 0.05);
    else if (step) turn(step[0] * 0.1, step[1] * 0.1);
    else if (event.key === "+" || event.key === "=") zoom(0.87);
    else if (event.key === "-") zoom(1.15);
    else if (event.key === "0" || event.key === "Home") back();
    else return;
    event.preventDefault();
  });

  // Controls are made here, so that a page without scripts shows none that do nothing.
  const bar = root.querySelector(".pri3d-bar");
  const control = (text, input) => {
    const label = document.createElement("label");
    label.append(input, ` ${text}`);
    bar.append(label);
    return input;
  };
  const make = (tag, values) => Object.assign(document.createElement(tag), values);
  for (const [name, count] of [["cameras", cameras.length + path.length], ["matches", matches.length]]) {
    if (!count) continue;
    const box = control(name, make("input", { type: "checkbox", checked: true }));
    box.addEventListener("change", () => { state[name] = box.checked; redraw(); });
  }
  const cut = make("input", { type: "range", min: scene.low, max: scene.high, step: "any", value: scene.cut });
  control("height shown", cut).addEventListener("input", () => { state.cut = Number(cut.value); redraw(); });
  if (cameras.length) {
    const choice = make("select", {});
    choice.append(new Option("look through …", ""));
    cameras.forEach((camera, k) => choice.append(new Option(camera.name, k)));
    choice.setAttribute("aria-label", "look through a camera");
    choice.addEventListener("change", () => { if (choice.value) lookThrough(Number(choice.value)); });
    bar.append(choice);
  }
  const button = make("button", { type: "button", textContent: "reset" });
  button.addEventListener("click", back);
  bar.append(button);

  root.classList.add("pri3d-on");
  new ResizeObserver(resize).observe(canvas);
  resize();
})();
