// The overlay: one image as large as it is, or two of them side by side, under a slider, or blinking.
// The browser's own dialog keeps the focus, closes on Esc and gives the focus back.

const lightbox = (() => {
  const dialog = byId("lightbox");
  const stage = byId("lightbox-stage");
  const about = byId("lightbox-about");
  const modes = byId("lightbox-modes");
  let rows = []; // images that the arrow keys walk through
  let at = [0, 0];
  let image = -1;
  let other = -1; // compared with; -1: nothing
  let held = -1; // kept to be compared with the next
  let mode = "side";
  let zoom = { scale: 1, x: 0, y: 0 };
  let blinking = false;

  function open(matrix, row, column) {
    rows = matrix;
    at = [row, column];
    other = -1;
    show(rows[row][column]);
    if (!dialog.open) dialog.showModal();
    stage.focus();
  }

  function show(which) {
    image = which;
    if (other === image) other = -1;
    zoom = { scale: 1, x: 0, y: 0 };
    state.write({ image: data.images.id[image], with: other < 0 ? null : data.images.id[other], mode: other < 0 ? null : mode });
    draw();
  }

  function move(down, right) {
    let [row, column] = at;
    for (;;) {
      row += down;
      column += right;
      if (row < 0 || row >= rows.length || column < 0 || column >= rows[row].length) return;
      if (rows[row][column] >= 0) break;
    }
    at = [row, column];
    if (other >= 0) other = partnerOf(rows[row][column]);
    show(rows[row][column]);
  }

  /** The control's image of the same prompt and seed, of an image of another arm. */
  function partnerOf(which) {
    const [trial, arm] = ownerOf(which);
    if (trial < 0) return -1;
    const control = arm === data.control ? data.arm : data.control;
    const owner = arm === data.control && data.selected >= 0 ? data.selected : trial;
    return imageOf(owner, control, data.images.prompt[which], data.images.seed[which]);
  }

  function compare(which) {
    other = other === which ? -1 : which;
    show(image);
  }

  function picture(which, label) {
    const shown = el("img", { alt: nameOf(which), draggable: "false" });
    shown.classList.toggle("crisp", isCrisp(which));
    const original = originalOf(which);
    const small = data.thumbnails[which] === null ? null : sourceOf(which);
    if (original !== null && small !== null) {
      shown.addEventListener("error", () => { shown.src = small; }, { once: true });
    }
    shown.src = original ?? small ?? "data:,";
    const [width, height] = data.images.size[which];
    const room = { width: Math.max(200, innerWidth * (innerWidth > 900 ? 0.62 : 0.92)), height: innerHeight * (innerWidth > 900 ? 0.72 : 0.6) };
    const share = other >= 0 && mode === "side" ? 2 : 1;
    let factor = Math.min(room.width / share / width, room.height / height);
    if (factor > 1) factor = isCrisp(which) ? Math.min(8, Math.max(1, Math.floor(factor))) : Math.min(factor, 2);
    shown.width = Math.round(width * factor);
    shown.height = Math.round(height * factor);
    return el("figure", { style: `--shown: ${shown.width}px` }, el("div", { class: "frame" }, shown), el("figcaption", {}, label));
  }

  function draw() {
    blinking = false;
    stage.replaceChildren();
    stage.className = other < 0 ? "one" : mode;
    if (other < 0) {
      stage.append(picture(image, ""));
    } else {
      const [first, second] = [picture(other, labelOf(other)), picture(image, labelOf(image))];
      stage.append(first, second);
      if (mode === "slider") {
        second.style.setProperty("--cut", "50%");
        const slide = el("input", {
          type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of the first image",
          input: (event) => second.style.setProperty("--cut", `${event.target.value}%`),
          keydown: (event) => { if (event.key.startsWith("Arrow")) event.stopPropagation(); },
        });
        stage.append(slide);
      }
    }
    modes.hidden = other < 0;
    for (const button of modes.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    }
    placeZoom();
    describe();
  }

  function labelOf(which) {
    const [trial, arm] = ownerOf(which);
    if (arm < 0) return "";
    return data.arms[arm].control ? data.arms[arm].name : `${data.arms[arm].name}, ${data.trials[trial].label}`;
  }

  function describe() {
    const [trial, arm] = ownerOf(image);
    const prompt = data.images.prompt[image];
    const seed = data.images.seed[image];
    const differs = arm !== data.control; // the control has no difference from itself
    const rowsOfScores = data.metrics.map((metric, m) => {
      const value = score(image, m);
      const reason = data.images.reasons[`${image} ${m}`];
      const apart = trial < 0 ? null : difference(trial, arm, prompt, seed, data.control, m);
      const text = value === null ? reason ?? "not scored" : plain(value, metric.decimals);
      return el("tr", {},
        el("th", { scope: "row" }, metric.name),
        el("td", { class: "n" }, text),
        differs ? el("td", { class: `n ${apart === null ? "" : tone(apart, m)}` }, apart === null ? "—" : signed(apart, metric.decimals)) : "");
    });
    const partner = partnerOf(image);
    const original = originalOf(image);
    const parameters = parametersOf(image);
    const control = data.arms[data.control].name;
    about.replaceChildren(...[
      el("h2", { id: "lightbox-title" }, data.prompts[prompt].text),
      el("p", {}, `seed ${data.seeds[seed]} · ${data.prompts[prompt].split} prompt · `, el("strong", {}, arm < 0 ? "" : data.arms[arm].name)),
      arm >= 0 && data.arms[arm].about ? el("p", { class: "note" }, data.arms[arm].about) : null,
      arm >= 0 && !data.arms[arm].control ? el("p", {}, data.trials[trial].label) : null,
      el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "score"), el("th", { scope: "col", class: "n" }, "value"),
          differs ? el("th", { scope: "col", class: "n" }, `− ${control}`) : "")),
        el("tbody", {}, rowsOfScores)),
      el("p", { class: "buttons" },
        partner < 0 ? null : el("button", { type: "button", "aria-pressed": String(other === partner), click: () => compare(partner) },
          `Compare with ${labelOf(partner).split(",")[0]} (c)`),
        held >= 0 && held !== image ? el("button", { type: "button", "aria-pressed": String(other === held), click: () => compare(held) }, "Compare with the kept image (x)") : null,
        el("button", { type: "button", "aria-pressed": String(held === image), click: () => { held = held === image ? -1 : image; describe(); } }, "Keep to compare (k)")),
      parameters ? el("details", {}, el("summary", {}, "Parameters of the file"), el("pre", { tabindex: 0 }, parameters)) : null,
      original === null ? el("p", { class: "note" }, "The original is not beside this page: this is its thumbnail.")
        : el("p", {}, el("a", { href: original, target: "_blank", rel: "noopener" }, "Open the file"),
          ` (${data.images.size[image].join(" × ")})`),
    ].filter((part) => part !== null));
  }

  function placeZoom() {
    for (const shown of stage.querySelectorAll("img")) {
      shown.style.transform = `translate(${zoom.x}px, ${zoom.y}px) scale(${zoom.scale})`;
    }
  }

  function zoomBy(factor) {
    zoom.scale = Math.min(16, Math.max(1, zoom.scale * factor));
    if (zoom.scale === 1) zoom = { scale: 1, x: 0, y: 0 };
    placeZoom();
  }

  const keys = {
    ArrowLeft: () => move(0, -1), ArrowRight: () => move(0, 1), ArrowUp: () => move(-1, 0), ArrowDown: () => move(1, 0),
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => zoomBy(0),
    c: () => { const partner = partnerOf(image); if (partner >= 0) compare(partner); },
    k: () => { held = held === image ? -1 : image; describe(); },
    x: () => { if (held >= 0 && held !== image) compare(held); },
    1: () => setMode("side"), 2: () => setMode("slider"), 3: () => setMode("blink"),
    " ": () => { if (other >= 0 && mode === "blink") blink(); },
  };

  function blink() {
    blinking = !blinking;
    stage.classList.toggle("first", blinking);
  }

  function setMode(name) {
    if (other < 0) return;
    mode = name;
    show(image);
  }

  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const button = event.target.closest?.("button, a, summary, input, pre");
    if (event.key === " " && button && !(mode === "blink" && other >= 0)) return;
    if (event.target.closest?.("pre") && event.key.startsWith("Arrow")) return;
    const act = keys[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });
  dialog.addEventListener("close", () => state.write({ image: null, with: null, mode: null }));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  byId("lightbox-close").addEventListener("click", () => dialog.close());
  modes.addEventListener("click", (event) => { if (event.target.dataset.mode) setMode(event.target.dataset.mode); });
  stage.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2); }, { passive: false });
  stage.addEventListener("pointermove", (event) => {
    if (!(event.buttons & 1) || zoom.scale === 1 || event.target.type === "range") return;
    zoom.x += event.movementX;
    zoom.y += event.movementY;
    placeZoom();
  });

  /** What an address names: an image, maybe with another; false where this sweep has no such image. */
  function restore({ image: id, with: second, mode: wanted }) {
    const found = data.images.id.indexOf(id);
    if (found < 0) return false;
    const prompt = data.images.prompt[found];
    const seed = data.images.seed[found];
    const [trial, arm] = ownerOf(found);
    const row = trial < 0 ? [found] : data.arms.map((_, a) => imageOf(trial, a, prompt, seed));
    open([row], 0, Math.max(0, trial < 0 ? 0 : arm));
    const partner = data.images.id.indexOf(second);
    if (partner >= 0) {
      mode = ["side", "slider", "blink"].includes(wanted) ? wanted : "side";
      compare(partner);
    }
    return true;
  }

  /** Two images at once, as two cells of the grid. */
  function pair(first, second) {
    open([[second]], 0, 0);
    compare(first);
  }

  return { open, pair, restore };
})();
