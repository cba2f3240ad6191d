
// The rows of the table are filtered by status and words; a row with a preview opens in the viewer.
const byId = (id) => document.getElementById(id);
const rows = () => [...byId("cases").tBodies[0].rows];
const withPreview = () => rows().filter((row) => row.dataset.script && !row.hidden);

function applyFilter() {
  const status = byId("status").value, words = byId("words").value.trim().toLowerCase();
  for (const row of rows()) {
    const fits = status === "warnings" ? row.dataset.warnings !== "0" : !status || row.dataset.status === status;
    row.hidden = !fits || !row.textContent.toLowerCase().includes(words);
  }
  const visible = rows().filter((row) => !row.hidden).length;
  byId("shown").textContent = visible === rows().length ? "" : `${visible} of ${rows().length}`;
}
byId("status").addEventListener("change", applyFilter);
byId("words").addEventListener("input", applyFilter);

// A page opened from a disk cannot read files but can load scripts; each preview calls voxelwavePreview(name, content).
const waiting = new Map();
window.voxelwavePreview = (name, content) => waiting.get(name)?.(content);

function loadScript(address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => { script.remove(); reject(new Error(`${address} is missing`)); };
    document.head.append(script);
  });
}

async function preview(row) {
  const content = new Promise((resolve) => waiting.set(row.dataset.case, resolve));
  await loadScript(row.dataset.script);
  const loaded = await content;
  waiting.delete(row.dataset.case);
  return loaded;
}

let opened = 0; // counts requests, so that a slow one does not overwrite a later one
async function open(row) {
  const request = ++opened;
  rows().forEach((other) => other.classList.toggle("current", other === row));
  history.replaceState(null, "", `#${row.id}`);
  byId("viewer").hidden = false;
  byId("viewer").dataset.state = "loading";
  byId("viewer-name").textContent = row.dataset.case;
  byId("viewer-notes").textContent = "";
  byId("layers").replaceChildren();
  try {
    const content = await preview(row);
    if (request !== opened) return;
    if (content.volumes) await showVolumes(content.volumes);
    else if (content.pictures) showPictures(content.pictures);
    else showWindows(content.windows);
    if (request !== opened) return;
    byId("viewer-notes").textContent = content.notes.join("; ");
    byId("viewer").dataset.state = "ready";
  } catch (error) {
    byId("viewer-notes").textContent = `cannot be shown: ${error.message}`;
    byId("viewer").dataset.state = "failed";
  }
}

function slider(role, opacity, onInput) {
  const label = document.createElement("label"), range = document.createElement("input");
  const value = document.createElement("output");
  Object.assign(range, { type: "range", min: 0, max: 100, value: 100 * opacity });
  range.dataset.role = role;
  const tell = () => { value.textContent = `${range.value} %`; };
  range.addEventListener("input", () => { tell(); onInput(range.value / 100); });
  tell();
  label.append(role, range, value);
  byId("layers").append(label);
  return label;
}

// volumes: NiiVue, created once

let viewer = null;
async function showVolumes(volumes) {
  byId("stage").className = "";
  if (!viewer) {
    if (!window.niivue) await loadScript(document.body.dataset.viewer);
    const canvas = document.createElement("canvas");
    byId("stage").replaceChildren(canvas);
    viewer = new niivue.Niivue({
      isRadiologicalConvention: true, multiplanarShowRender: niivue.SHOW_RENDER.NEVER, dragAndDropEnabled: false,
      crosshairWidth: 0.5, logLevel: "error", loadingText: "",
    });
    // NiiVue makes voxels at the start of a colour map transparent; here black is an ordinary value
    viewer.addColormap("grey", { R: [0, 255], G: [0, 255], B: [0, 255], A: [255, 255], I: [0, 255] });
    viewer.addColormap("orange", { R: [0, 255, 255], G: [0, 110, 235], B: [0, 0, 190], A: [255, 255, 255], I: [0, 150, 255] });
    await viewer.attachToCanvas(canvas);
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    viewer.onLocationChange = (place) => { byId("viewer").dataset.place = place.string; };
    window.voxelwaveViewer = viewer;
  } else {
    byId("stage").replaceChildren(viewer.canvas);
    while (viewer.volumes.length) viewer.removeVolumeByIndex(viewer.volumes.length - 1);
  }
  const pair = volumes.length > 2;
  for (const [index, one] of volumes.entries()) {
    const last = index === volumes.length - 1;
    const opacity = index === 0 ? 1 : last ? (pair ? 0.5 : 1) : 0;
    const image = await niivue.NVImage.loadFromBase64({
      base64: one.data, name: `${index}.nii.gz`, colormap: pair && last ? "orange" : "grey", opacity,
      cal_min: one.low - (one.high - one.low) / 254, cal_max: one.high, colorbarVisible: false,
    });
    viewer.addVolume(image);
    const label = slider(one.role, opacity, (value) => viewer.setOpacity(index, value));
    if (index > 0) label.append(colourBox(image, pair && last));
  }
  viewer.setOpacity(0, 1);
}

function colourBox(image, checked) {
  const label = document.createElement("label"), box = document.createElement("input");
  Object.assign(box, { type: "checkbox", checked });
  box.addEventListener("change", () => viewer.setColormap(image.id, box.checked ? "orange" : "grey"));
  label.append(box, "in colour");
  return label;
}

// pictures, one on top of the other

function showPictures(pictures) {
  byId("stage").className = "";
  byId("stage").replaceChildren();
  pictures.forEach((one, index) => {
    const picture = new Image();
    picture.src = one.data;
    picture.alt = one.role;
    byId("stage").append(picture);
    if (index > 0) slider(one.role, 1, (value) => { picture.style.opacity = value; });
  });
}

// a recording: its windows as bars and as a table

function showWindows(windows) {
  const figure = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  figure.setAttribute("viewBox", `0 0 ${Math.max(1, windows.length)} 1`);
  figure.setAttribute("preserveAspectRatio", "none");
  windows.forEach((one, index) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { x: index, y: 1 - one.probability, width: 0.9, height: one.probability, fill: "var(--main)" };
    Object.entries(place).forEach(([name, value]) => bar.setAttribute(name, value));
    figure.append(bar);
  });
  const table = document.createElement("table");
  table.innerHTML = "<thead><tr><th class=n>window starts at (s)</th><th class=n>probability</th></tr></thead>";
  const body = table.createTBody();
  for (const one of windows) {
    const row = body.insertRow();
    row.insertCell().textContent = one.start_s.toFixed(2);
    row.insertCell().textContent = one.probability.toFixed(3);
    for (const cell of row.cells) cell.className = "n";
  }
  byId("stage").className = "plain";
  byId("stage").replaceChildren(figure, table);
}

// ways to a case

byId("cases").addEventListener("click", (event) => {
  const button = event.target.closest("button.open");
  if (button) open(button.closest("tr"));
});
byId("close").addEventListener("click", () => {
  ++opened;
  byId("viewer").hidden = true;
  rows().forEach((row) => row.classList.remove("current"));
  history.replaceState(null, "", location.pathname);
});
function step(by) {
  const there = withPreview(), at = there.findIndex((row) => row.classList.contains("current"));
  if (there.length) open(there[(at + by + there.length) % there.length]);
}
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
const wanted = location.hash && document.getElementById(location.hash.slice(1));
if (wanted && wanted.dataset.script) open(wanted);
