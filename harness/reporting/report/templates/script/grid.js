// The X/Y/Z grid: columns, rows and panels from any axis, arm, parameter of arms, prompt or seed.

const grid = (() => {
  const place = byId("grid");
  const MOST = 6000; // cells; more would make the browser slow
  const MOSAIC = 4; // images in a cell that stands for several prompts
  let dims = [];
  let current = null; // { x, y, z, at, metric, control, order, pin, size }
  let shown = []; // rows of cells, as last drawn
  let marked = null; // the first of two cells to compare

  // A coordinate is a number in a dimension's values; prompts and seeds also have these.
  const ALL_DEV = -1;
  const ALL_TEST = -2;
  const ALL = -1;

  function dimensions() {
    const found = data.axes.map((axis, number) => ({ ...axis, kind: "axis", number }));
    const chosen = tickedTrials();
    const trials = data.trials.map((trial, number) => ({ trial, number })).filter(({ number }) => chosen === null || chosen.has(number));
    found.push({
      key: "trial", name: "trial", kind: "trial", values: trials.map(({ trial }) => trial.label), numbers: trials.map(({ number }) => number),
    });
    const heads = [...new Set(data.arms.map((arm) => arm.head))];
    found.push({ key: "arm", name: "arm", kind: "arm", values: heads });
    for (const [key, name] of Object.entries(data.params)) {
      const values = [...new Set(data.arms.filter((arm) => key in arm.params).map((arm) => arm.params[key]))];
      if (values.every((value) => typeof value === "number")) values.sort((a, b) => a - b);
      found.push({ key: `arm.${key}`, name, kind: "param", param: key, values: values.map(String), raw: values });
    }
    found.push({ key: "prompt", name: "prompt", kind: "prompt", values: data.prompts.map((prompt) => prompt.text) });
    found.push({ key: "seed", name: "seed", kind: "seed", values: data.seeds.map(String) });
    return found.filter((dim) => dim.values.length > 1 || ["prompt", "seed", "arm"].includes(dim.kind));
  }

  /** Trials ticked in the table, from the address; null: all. */
  function tickedTrials() {
    const text = state.read().trials;
    if (!text) return null;
    const indices = new Set(text.split(",").map(Number));
    const numbers = data.trials.flatMap((trial, number) => (indices.has(trial.index) ? [number] : []));
    return numbers.length ? new Set(numbers) : null;
  }

  const dim = (key) => dims.find((one) => one.key === key);
  const byTrial = () => ["x", "y", "z"].some((side) => current[side] === "trial") || data.axes.length === 0;

  function start() {
    const given = state.read();
    dims = dimensions();
    const axes = dims.filter((one) => one.kind === "axis");
    const numeric = [...axes].sort((a, b) => (b.key === "training.steps") - (a.key === "training.steps"));
    const first = numeric[0]?.key ?? (dim("prompt").values.length > 1 ? "prompt" : "arm");
    const second = numeric[1]?.key ?? (dim("trial") ? "trial" : "arm");
    const third = numeric[2]?.key ?? "";
    const known = (key, otherwise) => (key === "" || dim(key) ? key ?? otherwise : otherwise);
    current = {
      x: known(given.x, first), y: known(given.y, second), z: known(given.z, third),
      metric: Math.max(0, given.metric === undefined ? data.primary : data.metrics.findIndex((m) => m.name === given.metric)),
      control: given.control === undefined ? data.control : Math.max(0, data.arms.findIndex((arm) => arm.name === given.control)),
      order: ["rows", "columns", "both"].includes(given.order) ? given.order : "given",
      pin: given.pin !== "0", size: Number(given.size) || 0, at: {},
    };
    const home = data.trials[data.selected];
    for (const one of dims) {
      let value = 0;
      if (one.kind === "axis") value = Math.max(0, home?.at[one.number] ?? 0);
      if (one.kind === "trial") value = Math.max(0, one.numbers.indexOf(data.selected));
      if (one.kind === "arm") value = one.values.indexOf(data.arms[data.arm].head);
      if (one.kind === "param") value = Math.max(0, one.raw.indexOf(data.arms[data.arm].params[one.param]));
      if (one.kind === "prompt") value = data.start[0];
      if (one.kind === "seed") value = data.start[1];
      const wanted = Number(given[`at.${one.key}`]);
      const least = one.kind === "prompt" ? ALL_TEST : one.kind === "seed" ? ALL : 0;
      if (given[`at.${one.key}`] !== undefined && Number.isInteger(wanted) && wanted >= least && wanted < one.values.length) value = wanted;
      current.at[one.key] = value;
    }
  }

  function save() {
    const { x, y, z, metric, control, order, pin, size, at } = current;
    const changes = {
      x, y, z: z || null, metric: data.metrics[metric].name, control: data.arms[control].name,
      order: order === "given" ? null : order, pin: pin ? null : "0", size: size || null,
    };
    for (const one of dims) changes[`at.${one.key}`] = [x, y, z].includes(one.key) ? null : at[one.key];
    state.write(changes);
  }

  // From coordinates to images

  const trialsAt = new Map();

  function trialOf(at) {
    if (byTrial()) return dim("trial") ? dim("trial").numbers[at.trial] : 0;
    const wanted = data.axes.map((axis) => at[axis.key] ?? 0);
    const key = wanted.join(" ");
    if (!trialsAt.has(key)) {
      // A trial to which an axis does not apply stands at each of its values.
      trialsAt.set(key, data.trials.findIndex((trial) => trial.at.every((value, axis) => value < 0 || value === wanted[axis])));
    }
    return trialsAt.get(key);
  }

  function armOf(at) {
    const head = dim("arm").values[at.arm];
    const family = data.arms.map((arm, number) => ({ arm, number })).filter(({ arm }) => arm.head === head);
    const fits = family.find(({ arm }) => dims.every((one) =>
      one.kind !== "param" || !(one.param in arm.params) || arm.params[one.param] === one.raw[at[one.key]]));
    return fits?.number ?? -1;
  }

  /** What stands at coordinates: trial, arm, images, values, difference and interval, or the reason why not. */
  function cellAt(at) {
    const trial = trialOf(at);
    const arm = armOf(at);
    if (trial < 0) return { trial, arm, images: [], reason: "not in this sweep" };
    if (arm < 0) return { trial, arm, images: [], reason: "no such arm" };
    const split = at.prompt === ALL_TEST ? "test" : at.prompt === ALL_DEV ? "dev" : data.prompts[at.prompt]?.split;
    const prompts = at.prompt >= 0 ? [at.prompt] : data.prompts.flatMap((prompt, p) => (prompt.split === split ? [p] : []));
    const seeds = at.seed >= 0 ? [at.seed] : data.seeds.map((_, s) => s);
    const cells = prompts.flatMap((prompt) => seeds.map((seed) => [prompt, seed]));
    const images = cells.map(([prompt, seed]) => imageOf(trial, arm, prompt, seed)).filter((image) => image >= 0);
    const values = images.map((image) => score(image, current.metric)).filter((value) => value !== null);
    const apart = cells.map(([prompt, seed]) => difference(trial, arm, prompt, seed, current.control, current.metric)).filter((value) => value !== null);
    const cell = { trial, arm, images, value: values.length ? mean(values) : null, apart: apart.length ? mean(apart) : null, n: apart.length, several: cells.length > 1 };
    if (at.prompt < 0 && at.seed < 0) {
      const found = contrast(trial, arm, current.control, current.metric, split);
      if (found) Object.assign(cell, { apart: found.value, low: found.low, high: found.high, prompts: found.prompts });
    }
    if (!images.length) cell.reason = whyNone(trial, arm, split);
    return cell;
  }

  function whyNone(trial, arm, split) {
    const { status, reason, index } = data.trials[trial];
    if (status !== "completed") return `trial ${index} ${status}${reason ? `: ${reason}` : ""}`;
    return split === "test" && trial !== data.selected ? "test images are generated for the selected trial alone" : "no image";
  }

  // Drawing

  function coordinates(key) {
    const one = key ? dim(key) : null;
    if (!one) return [{ value: null, label: "" }];
    const named = (value, number) => ({
      value: number,
      label: one.kind === "prompt" ? `${value}${data.prompts[number].split === "test" ? " (test)" : ""}` : one.kind === "axis" || one.kind === "trial" || one.kind === "arm" ? value : `${one.name} ${value}`,
    });
    const list = one.values.map(named);
    // Prompts along an axis are those of the split that the slider stands on, where the other has no images.
    return one.kind === "prompt" && data.prompts.some((p) => p.split === "dev") && !showsTest()
      ? list.filter(({ value }) => data.prompts[value].split === "dev") : list;
  }

  const showsTest = () => current.at.prompt === ALL_TEST || data.prompts[current.at.prompt]?.split === "test";

  /** Panels of rows of cells, in the order that is asked for. */
  function model() {
    const [rows, panels] = [coordinates(current.y), coordinates(current.z)];
    // The control stands beside each row already.
    const twice = current.pin && current.x === "arm" && data.arms.filter((arm) => arm.head === data.arms[current.control].head).length === 1;
    const columns = coordinates(current.x).filter(({ label }) => !twice || label !== data.arms[current.control].head);
    const at = (c, r, p) => ({
      ...current.at, ...(current.z && { [current.z]: p.value }), ...(current.y && { [current.y]: r.value }), ...(current.x && { [current.x]: c.value }),
    });
    if (columns.length * rows.length * panels.length > MOST) return null;
    return panels.map((panel) => {
      let cells = rows.map((row) => columns.map((column) => ({ ...cellAt(at(column, row, panel)), at: at(column, row, panel) })));
      let [heads, names] = [columns, rows];
      const rank = (list) => (list.length ? mean(list) : -Infinity) * (data.metrics[current.metric].higher === false ? -1 : 1);
      const values = (list) => list.flatMap((cell) => (cell.apart === null || cell.apart === undefined ? [] : [cell.apart]));
      if (current.order === "rows" || current.order === "both") {
        const order = cells.map((_, r) => r).sort((a, b) => rank(values(cells[b])) - rank(values(cells[a])));
        [cells, names] = [order.map((r) => cells[r]), order.map((r) => rows[r])];
      }
      if (current.order === "columns" || current.order === "both") {
        const column = (c) => values(cells.map((row) => row[c]));
        const order = columns.map((_, c) => c).sort((a, b) => rank(column(b)) - rank(column(a)));
        [cells, heads] = [cells.map((row) => order.map((c) => row[c])), order.map((c) => columns[c])];
      }
      return {
        title: panel.label, columns: heads, rows: names, cells,
        columnMeans: heads.map((_, c) => values(cells.map((row) => row[c]))).map(acrossArms(current.y)),
        rowMeans: cells.map(values).map(acrossArms(current.x)),
        pinned: pinned(cells),
      };
    });
  }

  /** The mean of a margin; none across arms, which have nothing to be averaged over. */
  const acrossArms = (key) => (list) => (list.length > 1 && dim(key)?.kind !== "arm" ? mean(list) : null);

  /** The control beside each row; null where the columns are prompts or seeds, or it is not wanted. */
  function pinned(cells) {
    const kinds = [current.x].map((key) => dim(key)?.kind);
    if (!current.pin || kinds.some((kind) => ["prompt", "seed"].includes(kind))) return null;
    return cells.map((row) => {
      const with_trial = row.find((cell) => cell.trial >= 0);
      if (!with_trial) return null;
      const [prompt, seed] = [with_trial.at.prompt, with_trial.at.seed];
      const trial = with_trial.trial;
      const split = prompt === ALL_TEST ? "test" : "dev";
      const prompts = prompt >= 0 ? [prompt] : data.prompts.flatMap((one, p) => (one.split === split ? [p] : []));
      const seeds = seed >= 0 ? [seed] : data.seeds.map((_, s) => s);
      const images = prompts.flatMap((p) => seeds.map((s) => imageOf(trial, current.control, p, s))).filter((image) => image >= 0);
      const values = images.map((image) => score(image, current.metric)).filter((value) => value !== null);
      return { trial, arm: current.control, images, value: values.length ? mean(values) : null, apart: null, several: images.length > 1, at: with_trial.at };
    });
  }

  /** The tone of a difference; none where its interval includes zero. */
  function colour({ apart, low, high }) {
    const open = low !== null && low !== undefined && low <= 0 && high >= 0;
    return open ? "" : tone(apart, current.metric);
  }

  function number(cell) {
    const { decimals, name } = data.metrics[current.metric];
    const parts = [];
    if (cell.value !== null && cell.value !== undefined) parts.push(el("span", { class: "score", title: name }, plain(cell.value, decimals)));
    if (cell.apart !== null && cell.apart !== undefined) {
      parts.push(" ", el("span", { class: `delta ${colour(cell)}` }, signed(cell.apart, decimals)));
      if (cell.low !== null && cell.low !== undefined) {
        parts.push(el("span", { class: "interval" }, `[${signed(cell.low, decimals)}, ${signed(cell.high, decimals)}]`));
        parts.push(el("span", { class: "interval" }, `${cell.prompts} prompts`));
      } else if (cell.several) parts.push(el("span", { class: "interval" }, `mean of ${cell.n}`));
    }
    return parts;
  }

  function pictures(cell, row, column) {
    const count = cell.images.length;
    const some = count <= MOSAIC ? cell.images : Array.from({ length: MOSAIC }, (_, k) => cell.images[Math.floor((k * count) / MOSAIC)]);
    const seen = some.map((image) => {
      const source = sourceOf(image);
      if (source === null) return el("span", { class: "noimage" }, "image left out");
      const [width, height] = data.images.size[image]; // keep the room before it is loaded
      // An embedded image is there already: to load it late would only leave it out of a print.
      const loading = source.startsWith("data:") ? null : "lazy";
      const shown = el("img", { src: source, alt: nameOf(image), width, height, loading, decoding: "async" });
      shown.classList.toggle("crisp", isCrisp(image));
      return shown;
    });
    return el("button", { type: "button", class: `shot-button${some.length > 1 ? " mosaic" : ""}`, "data-row": row, "data-column": column }, seen);
  }

  function draw() {
    const panels = model();
    const out = byId("grid-panels");
    shown = [];
    if (panels === null) {
      out.replaceChildren(el("p", {}, `These axes have more than ${MOST.toLocaleString("en")} cells: choose others, or tick a few trials in the table.`));
      return;
    }
    const { decimals } = data.metrics[current.metric];
    out.replaceChildren(...panels.map((panel) => {
      const margin = (value) => (value === null ? null : el("span", { class: `margin ${tone(value, current.metric)}` }, `mean ${signed(value, decimals)}`));
      const head = el("tr", {},
        el("td", { class: "corner" }),
        panel.pinned ? el("th", { scope: "col", class: "pinned" }, data.arms[current.control].name) : null,
        panel.columns.map((column, c) => el("th", { scope: "col" }, column.label, margin(panel.columnMeans[c]))));
      const body = panel.cells.map((row, r) => {
        const line = shown.length;
        const control = panel.pinned?.[r] ?? null;
        const all = panel.pinned ? [control ?? { images: [], reason: "no image" }, ...row] : row;
        shown.push(all);
        const tds = all.map((cell, c) => {
          const pin = panel.pinned && c === 0;
          const classes = [pin ? "pinned" : "", cell.trial === data.selected && cell.arm === data.arm ? "chosen" : ""].join(" ").trim();
          return el("td", { class: classes || null },
            cell.images.length ? pictures(cell, line, c) : el("div", { class: "noimage" }, cell.reason ?? "no image"),
            el("div", { class: "numbers" }, number(cell)));
        });
        return el("tr", {}, el("th", { scope: "row" }, panel.rows[r].label, margin(panel.rowMeans[r])), tds);
      });
      const table = el("table", { class: "xyz" },
        el("caption", {}, panel.title || (current.z ? "" : "")), el("thead", {}, head), el("tbody", {}, body));
      return el("div", { class: "gridscroll", tabindex: 0, role: "region", "aria-label": `Grid ${panel.title}` }, table);
    }));
    place.style.setProperty("--cell", current.size ? `${current.size}px` : null);
  }

  function choice(label, value, options, change, id) {
    const select = el("select", { id, change: (event) => { change(event.target.value); update(id); } },
      options.map(([key, name]) => el("option", { value: key, selected: String(key) === String(value) }, name)));
    return el("label", {}, el("span", {}, label), select);
  }

  function controls() {
    const sides = dims.map((one) => [one.key, one.name]);
    const swap = (side) => (value) => {
      for (const other of ["x", "y", "z"]) if (other !== side && current[other] === value && value) current[other] = current[side];
      current[side] = value;
    };
    const none = [["", "–"], ...sides];
    const used = [current.x, current.y, current.z];
    const rest = dims.filter((one) => !used.includes(one.key) && one.values.length > 1 && (byTrial() ? one.kind !== "axis" : one.kind !== "trial"));
    byId("grid-controls").replaceChildren(
      el("div", { class: "choices" },
        choice("columns (X)", current.x, sides, swap("x"), "grid-x"), choice("rows (Y)", current.y, none, swap("y"), "grid-y"), choice("panels (Z)", current.z, none, swap("z"), "grid-z"),
        choice("score", current.metric, data.metrics.map((metric, m) => [m, metric.name]), (value) => { current.metric = Number(value); }, "grid-metric"),
        choice("difference from", current.control, data.arms.flatMap((arm, a) => (arm.control ? [[a, arm.name]] : [])), (value) => { current.control = Number(value); }, "grid-control"),
        choice("order", current.order, [["given", "as given"], ["rows", "rows by difference"], ["columns", "columns by difference"], ["both", "both by difference"]], (value) => { current.order = value; }, "grid-order"),
        choice("size", current.size, [[0, "medium"], [64, "small"], [192, "large"], [320, "very large"]], (value) => { current.size = Number(value); }, "grid-size"),
        el("label", { class: "check" }, el("input", { type: "checkbox", id: "grid-pin", checked: current.pin, change: (event) => { current.pin = event.target.checked; update("grid-pin"); } }), el("span", {}, "control beside each row"))),
      el("div", { class: "sliders" }, rest.map(slider)),
      el("p", { class: "buttons" },
        el("button", { type: "button", id: "grid-save", click: () => saveView(model(), current) }, "Save view as PNG"),
        tickedTrials() ? el("button", { type: "button", click: () => { state.write({ trials: null }); restart(); } }, "All trials again") : null));
  }

  function slider(one) {
    const least = one.kind === "prompt" ? (data.prompts.some((p) => p.split === "test") ? ALL_TEST : ALL_DEV) : one.kind === "seed" ? ALL : 0;
    const text = (value) => {
      if (value >= 0) return one.kind === "prompt" ? `${one.values[value]} (${data.prompts[value].split})` : one.values[value];
      return one.kind === "seed" ? "all seeds" : `all ${value === ALL_TEST ? "test" : "dev"} prompts`;
    };
    const id = `grid-at-${one.key}`;
    const value = current.at[one.key];
    const output = el("output", { for: id }, text(value));
    const input = el("input", {
      type: "range", id, min: least, max: one.values.length - 1, step: 1, value, "aria-valuetext": text(value),
      input: (event) => {
        current.at[one.key] = Number(event.target.value);
        output.textContent = text(current.at[one.key]);
        event.target.setAttribute("aria-valuetext", output.textContent);
        save();
        draw();
      },
    });
    return el("label", { for: id }, el("span", {}, one.name), input, output);
  }

  function update(focus) {
    save();
    controls();
    draw();
    if (focus) byId(focus)?.focus();
  }

  function restart() {
    trialsAt.clear();
    start();
    controls();
    draw();
  }

  /** Rows of trials and columns of arms, for the trials that are ticked in the table. */
  function compareTrials(indices) {
    state.write({ trials: indices.join(","), y: "trial", x: data.prompts.length > 1 ? "prompt" : "arm", z: null });
    restart();
    save();
    place.scrollIntoView();
  }

  function init() {
    if (!place || !data.images.draw.length) return;
    restart();
    byId("grid-panels").addEventListener("click", (event) => {
      const button = event.target.closest(".shot-button");
      if (!button) return;
      const [row, column] = [Number(button.dataset.row), Number(button.dataset.column)];
      const cell = shown[row][column];
      const within = [...button.children].indexOf(event.target.closest("img"));
      const step = cell.images.length <= MOSAIC ? 1 : cell.images.length / MOSAIC;
      const image = cell.images[Math.max(0, Math.floor(within * step))];
      if (event.shiftKey) {
        if (marked === null || marked === image) {
          marked = image;
          button.classList.add("marked");
        } else {
          lightbox.pair(marked, image);
          marked = null;
          byId("grid-panels").querySelector(".marked")?.classList.remove("marked");
        }
        return;
      }
      if (cell.images.length > 1) lightbox.open([cell.images], 0, cell.images.indexOf(image));
      else lightbox.open(shown.map((line) => line.map((one) => one.images[0] ?? -1)), row, column);
    });
  }

  return { init, restart, compareTrials };
})();
